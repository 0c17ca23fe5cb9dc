"""Frozen text encoders and the cache of their embeddings."""
