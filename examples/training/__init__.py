"""What every example that trains needs: files, checkpoints and a loop that survives a kill."""
