"""Clips as files: found, split, fetched, rendered."""
