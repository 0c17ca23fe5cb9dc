"""Experiment files: pure data, importable without jax, one per stage and job."""
