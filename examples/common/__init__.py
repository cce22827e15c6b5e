"""What the examples share: reading untrusted files, running commands, training, measures."""
