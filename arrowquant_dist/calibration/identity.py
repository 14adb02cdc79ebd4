"""What tells calibrations apart: digests of all that decides the statistics, by the names that people know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arrowquant_dist.target.manifest import hash_of

_MODEL, _TEXTS, _CONFIG, _CODE = "model", "texts", "config", "code"


@dataclass(frozen=True, slots=True)
class Identity:
    """fingerprint: digest of all of it. digests: {what: digest}; empty if a version wrote it that had none."""

    fingerprint: str
    digests: Mapping[str, str]

    @classmethod
    def of(cls, *, model: Any, texts: Any, config: Any, code: Any) -> Identity:
        """The identity of a calibration by these values, which JSON can hold."""
        every = {_MODEL: model, _TEXTS: texts, _CONFIG: config, _CODE: code}
        return cls(_digest(every), {name: _digest(values) for name, values in every.items()})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Identity:
        """The inverse of asdict, from JSON. Raises KeyError, TypeError, ValueError."""
        return cls(values["fingerprint"], dict(values.get("digests", {})))

    def difference(self, there: Mapping[str, str]) -> str:
        """How another calibration, with the digests `there`, differs from this one, in words."""
        other = [name for name, digest in self.digests.items() if there.get(name, digest) != digest]
        named = [f"another {name}" if name != _TEXTS else "other texts" for name in other if name != _CODE]
        return f"with {' and '.join(named)}" if named else "by another version of this package"


def _digest(values: Any) -> str:
    return hash_of(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())
