"""What it trains on: figures, photographs, videos."""
