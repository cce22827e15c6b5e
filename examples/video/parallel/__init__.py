"""Train on a video that no process holds as a whole."""
