"""Hostile inputs in numbers: each is refused in one sentence, or read right, within bounds of time and memory."""
