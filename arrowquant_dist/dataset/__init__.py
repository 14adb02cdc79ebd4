"""Reads a dataset at rest: its layers, and their values by range, by row or as a stream."""
