"""Stored bytes: local disk, object stores, and anything else that fsspec supports."""
