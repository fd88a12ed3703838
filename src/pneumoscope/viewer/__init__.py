"""The local viewer: results on disk as pages, on loopback only."""
