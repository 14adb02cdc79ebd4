"""config.json as an architecture reads it: each field with its type, and anything unknown refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from arrowquant_dist.config.checks import shown
from arrowquant_dist.errors import InvalidCheckpoint

OTHER_WAY = "export it with --format compressed-tensors, which does not depend on the architecture"
_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Settings:
    """Fields of an object in `file`. A null field counts as missing."""

    file: str
    fields: Mapping[str, Any]

    def count(self, name: str, default: int | None = None) -> int:
        """Returns a whole number above 0."""
        value = self._or_default(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
            raise self.wrong(name, "a whole number above 0")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """Returns a finite number above 0."""
        value = self._or_default(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3e38:
            raise self.wrong(name, "a number above 0")
        return float(value)

    def yes(self, name: str, *, default: bool) -> bool:
        value = self._or_default(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def word(self, name: str, default: str | None = None) -> str:
        value = self._or_default(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def part(self, name: str) -> Settings | None:
        """Returns the object in the field, or None."""
        value = self.fields.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return None if value is None else Settings(self.file, value)

    def has(self, name: str) -> bool:
        return self.fields.get(name) is not None

    def blocks(self, name: str, layers: int) -> int:
        """Returns the number of blocks of a model, each of which has several layers. layers: layers in the dataset."""
        count = self.count(name)
        if count > layers:
            raise self.wrong(name, f"at most {layers}, the layers of the dataset")
        return count

    def only(self, name: str, allowed: tuple[Any, ...], default: Any) -> None:
        """Refuses a model unless its field (the default, if missing) is one of `allowed`, as llama.cpp computes it."""
        value = default if self.fields.get(name) is None else self.fields[name]
        if not any(type(value) is type(known) and value == known for known in allowed):
            raise self.unknown(f"{name}: {shown(value)}")

    def wrong(self, name: str, wanted: str) -> InvalidCheckpoint:
        has = f"is {shown(self.fields[name])}" if self.has(name) else "is missing"
        return InvalidCheckpoint(
            f"{name} of {self.file} {has}, but has to be {wanted}; correct the file and try again"
        )

    def unknown(self, what: str) -> InvalidCheckpoint:
        """Returns the error for a model that the file describes well, but that this package does not support in
        GGUF."""
        return InvalidCheckpoint(f"{self.file} has {what}, which is not supported in GGUF; {OTHER_WAY}")

    def _or_default(self, name: str, default: Any) -> Any:
        value = self.fields.get(name)
        if isinstance(value, float) and not math.isfinite(value):
            raise self.wrong(name, "finite")
        return default if value is None else value


def is_utf8_text(value: object) -> TypeGuard[str]:
    """Returns whether the value is a string that UTF-8 can encode: JSON may contain lone surrogates."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
