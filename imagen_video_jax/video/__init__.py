"""Video as arrays and as files."""
