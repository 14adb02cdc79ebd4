"""Which calibration it is: digests of what decides the statistics, by what people know them as."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arrowquant_dist.target.manifest import hash_of

_MODEL, _TEXTS, _CONFIG, _CODE = "model", "texts", "config", "code"


@dataclass(frozen=True, slots=True)
class Identity:
    """fingerprint: of all of it. digests: {what: digest}; empty where a version wrote it that knew of none."""

    fingerprint: str
    digests: Mapping[str, str]

    @classmethod
    def of(cls, *, model: Any, texts: Any, config: Any, code: Any) -> Identity:
        """Of values that JSON can have."""
        every = {_MODEL: model, _TEXTS: texts, _CONFIG: config, _CODE: code}
        return cls(_digest(every), {name: _digest(values) for name, values in every.items()})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Identity:
        """As JSON has it. KeyError, TypeError, ValueError."""
        return cls(values["fingerprint"], dict(values.get("digests", {})))

    def difference(self, there: Mapping[str, str]) -> str:
        """What says how another calibration, of these digests, is another one."""
        other = [name for name, digest in self.digests.items() if there.get(name, digest) != digest]
        named = [f"another {name}" if name != _TEXTS else "other texts" for name in other if name != _CODE]
        return f"with {' and '.join(named)}" if named else "by another version of this package"


def _digest(values: Any) -> str:
    return hash_of(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())
