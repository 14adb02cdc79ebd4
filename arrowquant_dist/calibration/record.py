"""calibration.json: describes the statistics. It is written last, and its presence marks OUT as finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from arrowquant_dist.checkpoint.sampled import SampledWeights
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.methods import STATISTICS_VERSION
from arrowquant_dist.strict_json import parse_json


@dataclass(frozen=True, slots=True)
class CalibratedLayer:
    """A layer with statistics. name: its stored name. tokens: number of tokens that its inputs are from, or that an
    embedding's rows were looked up for. parts: names of its statistics, as `hessian`."""

    name: str
    tokens: int
    parts: tuple[str, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CalibratedLayer:
        """The inverse of asdict, from JSON. Raises KeyError, TypeError."""
        return cls(values["name"], values["tokens"], tuple(values["parts"]))


@dataclass(frozen=True, slots=True)
class Calibration:
    """The result of `calibrate`.

    out: folder or URL of the statistics, safe to show.
    model: the model's URI, safe to show.
    architecture: the model's class, as its config names it.
    texts: {name, count, tokens, digest, cut, longest}.
    sequential: whether each layer saw what the layers before it produce once quantized by `config`.
    config: the one given as `quantize`, or None.
    fingerprint, digests: see Identity.
    layers: layers with statistics.
    unseen: layers that would be quantized but never saw an input; like unfit and strange, they fall back to `mse`.
    unfit: layers whose inputs run along no axis that the source stores them with.
    strange: layers that the model uses otherwise than in products that are recognized.
    notes: sentences for people.
    weights: sampled values, by which a copy of the model is recognized wherever it is.
    """

    out: str
    model: str
    architecture: str
    texts: Mapping[str, Any]
    sequential: bool
    config: Mapping[str, Any] | None
    fingerprint: str
    layers: tuple[CalibratedLayer, ...]
    unseen: tuple[str, ...]
    unfit: tuple[str, ...]
    notes: tuple[str, ...]
    weights: SampledWeights = field(repr=False)
    strange: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of all fields for people, without the values of `weights`."""
        values = {name: value for name, value in asdict(self).items() if name not in ("out", "weights")}
        return {"format_version": STATISTICS_VERSION, **values}

    def to_bytes(self) -> bytes:
        """The bytes of calibration.json."""
        return json.dumps({**self.to_dict(), "weights": self.weights.to_dict()}, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, out: str, uri: str) -> Calibration:
        """The record of a calibration. data: the bytes of calibration.json. out: where the statistics are, safe to
        show. Raises InvalidCheckpoint, with `uri`, where it is not such a file, or of another version."""
        try:
            values: dict[str, Any] = parse_json(data)
            version = values.pop("format_version")
            if version != STATISTICS_VERSION:
                known = f"but only {STATISTICS_VERSION} is known here"
                is_newer = isinstance(version, int) and version > STATISTICS_VERSION
                what = "upgrade the package" if is_newer else "calibrate again with --overwrite"
                message = f"it has format_version {version}, {known}; {what}"
                raise InvalidCheckpoint(message, uri=uri)
            layers = tuple(map(CalibratedLayer.from_dict, values.pop("layers")))
            lists: dict[str, Any] = {key: tuple(values.pop(key)) for key in ("unseen", "unfit", "notes")}
            lists["strange"] = tuple(values.pop("strange", ()))
            weights = SampledWeights.from_dict(values.pop("weights"), uri)
            digests = dict(values.pop("digests", {}))
            return cls(**values, **lists, out=out, layers=layers, weights=weights, digests=digests)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = "it is not the record of a calibration; calibrate again with --overwrite"
            raise InvalidCheckpoint(message, uri=uri) from error
