"""Reads checkpoints that are quantized already: codes and scales become the layers they stand for."""
