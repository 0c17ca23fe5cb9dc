"""Measurements of speed, each repeated by the command in its head."""
