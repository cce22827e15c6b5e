"""Other libraries, one file each, imported only on use."""
