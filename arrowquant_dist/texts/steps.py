"""How far any work on texts has come: one step after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextsStep:
    """A step. name: what is being done, for people. done, total: how much of it, in `unit` (`bytes`, `texts` or
    `tokens`)."""

    name: str
    done: int
    total: int
    unit: str


StepCallback = Callable[[TextsStep], None]
