"""Products of inputs with packed rows, for models whose weights stay codes in memory. They choose no scale or code."""

from __future__ import annotations

BLOCK = 4  # rows that are taken together, and inputs that meet them together
