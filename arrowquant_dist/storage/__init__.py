"""Bytes at places: local disk, object stores, anything behind fsspec."""
