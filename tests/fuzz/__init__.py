"""Hostile inputs in large numbers: each is refused in one sentence or read correctly, within limits of time and
memory."""
