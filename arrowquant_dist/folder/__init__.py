"""Decides which files of a source's folder are its weights and which are copied, by names and sizes alone."""
