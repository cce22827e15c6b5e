"""Re-rendering a person in another pose by copying from a picture."""
