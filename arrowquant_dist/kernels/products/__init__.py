"""Products of inputs with packed rows, for models that keep weights as codes in memory. No scale or code depends on
them."""

from __future__ import annotations

BLOCK = 4  # rows, and inputs, that are multiplied together
