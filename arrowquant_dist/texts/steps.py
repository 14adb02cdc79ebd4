"""How far it is, whatever texts are gone through for: a step after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextsStep:
    """name: what is being done, for people. done, total: of it, in `unit` (`bytes`, `texts` or `tokens`)."""

    name: str
    done: int
    total: int
    unit: str


StepCallback = Callable[[TextsStep], None]
