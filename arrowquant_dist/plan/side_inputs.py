"""What methods need beside a layer's values (methods.SideInput): where it is, as headers say. A plan without such a
method asks for none of it.

A side input is a checkpoint like the source itself, named tensors at a URI that the config has. So it is found by its
headers, its files' identities go into the plan's fingerprint, and a file that changes before it is read is noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.table import Checkpoint, Layer, SourceFile
from arrowquant_dist.config import QuantizationConfig, QuantSpec, Storage
from arrowquant_dist.encodings.raw import RAW
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.method_names import METHODS
from arrowquant_dist.methods import method_of
from arrowquant_dist.plan.check import check_checkpoint
from arrowquant_dist.storage.uris import redact

SideInputs = Mapping[str, Checkpoint]  # {field of the config: what is at the URI that it holds}
_DTYPE = "float32"


def open_side_inputs(config: QuantizationConfig, storage: Storage) -> SideInputs:
    """The side inputs of the methods that `config` names. Raises as open_checkpoint."""
    names = {config.method, *(override.method for override in config.overrides)} - {None}
    fields = {METHODS[name] for name in names if name is not None} - {None}
    return {
        field: open_checkpoint(getattr(config, field), storage)
        for field in sorted(field for field in fields if field is not None)
    }


def described(side_inputs: SideInputs) -> dict[str, Any]:
    """{field: {uri, format, files}}, as a plan has its source: URIs without credentials."""
    return {field: described_source(checkpoint) for field, checkpoint in side_inputs.items()}


def described_source(checkpoint: Checkpoint) -> dict[str, Any]:
    """Plan.source."""
    source: dict[str, Any] = {
        "uri": redact(checkpoint.uri),
        "format": checkpoint.format,
        "files": _described(checkpoint.files),
    }
    if checkpoint.sidecar_files:
        source["sidecars"] = _described(checkpoint.sidecar_files)
    if checkpoint.largest_row_nbytes:
        source["largest_row_nbytes"] = checkpoint.largest_row_nbytes
    return source


def _described(files: Iterable[SourceFile]) -> list[dict[str, Any]]:
    return [{"uri": redact(f.uri), "nbytes": f.nbytes, "version": f.version} for f in files]


class SideTensors:
    """Finds the side tensors of layers. Raises InvalidCheckpoint for headers that can't be true."""

    def __init__(self, side_inputs: SideInputs) -> None:
        self._side_inputs = side_inputs
        self._stored: dict[str, dict[str, Layer]] = {}
        for field, checkpoint in side_inputs.items():
            check_checkpoint(checkpoint)
            self._stored[field] = {layer.name: layer for layer in checkpoint.layers}

    def of(self, layer: Layer, spec: QuantSpec) -> tuple[Layer, ...]:
        """In the order of the method's `shapes`; () for a layer that needs none.

        Raises InvalidConfig, which names the layer, where one is not there, or not plain float32 of its shape.
        """
        side_input = method_of(spec, layer.name).side_input if spec.chooses_codes else None
        if side_input is None:
            return ()
        shapes = side_input.shapes(layer.shape, spec.row_dims)
        return tuple(
            self._find(layer, side_input.config_field, f"{layer.name}.{part}", shape)
            for part, shape in shapes.items()
        )

    def _find(self, layer: Layer, field: str, name: str, shape: tuple[int, ...]) -> Layer:
        checkpoint = self._side_inputs[field]
        stored = self._stored[field].get(checkpoint.aliases.get(name, name))
        if stored is None:
            problem = f"{field} has no tensor {name!r}"
        elif (stored.shape, stored.dtype, stored.encoding) != (shape, _DTYPE, RAW):
            found = f"{list(stored.shape)} of {stored.dtype}, {stored.encoding.label}"
            problem = f"{field} has {name!r} as {found}, not as plain {_DTYPE} of {list(shape)}"
        else:
            return stored
        message = f"{problem}; choose another method for the layer by an override, or make {field} anew"
        raise InvalidConfig(message, layer=layer.name, uri=redact(checkpoint.uri))
