"""How compressed-tensors describes a quantized Linear: bits, group size, zero points, activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.export.compressed_tensors.packers import Int8Weight, PackedWeight, ScaleDtype
from arrowquant_dist.export.tensors import Packer

LINEAR_BITS = (2, 4, 8)  # versions pack 3 bits in two ways: densely since 0.18, ten codes per word before
_SCALES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # the dtype that codes are chosen for
_TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}


@dataclass(frozen=True, slots=True)
class LinearScheme:
    """A scheme for a Linear. bits: one of LINEAR_BITS. group_size: columns per scale; 0 for one scale per row.
    symmetric: no zero points; otherwise whole ones. activations: whether they become int8 too when the model runs, with
    a scale per token (W8A8); only with 8 bits, symmetric, by row."""

    bits: int
    group_size: int
    symmetric: bool
    activations: bool = False

    @property
    def label(self) -> str:
        """A description for people: `int4 in groups of 128 with whole zero points`."""
        scope = f"in groups of {self.group_size}" if self.group_size else "by row"
        zeros = "" if self.symmetric else " with whole zero points"
        return f"int{self.bits} {scope}{zeros}"

    @property
    def width(self) -> tuple[int, float, bool]:
        """A key that is larger the closer the scheme can be to the weights."""
        return self.bits, -float(self.group_size or float("inf")), not self.symmetric

    @property
    def format(self) -> str:
        return "int-quantized" if self.activations else "pack-quantized"

    def config_group(self, targets: Sequence[str]) -> dict[str, Any]:
        """Returns a member of `config_groups` with no more keys than readers need: they reject unknown keys."""
        weights: dict[str, Any] = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric}
        weights |= (
            {"strategy": "group", "group_size": self.group_size}
            if self.group_size
            else {"strategy": "channel"}
        )
        group = {"targets": list(targets), "format": self.format, "weights": weights}
        return group | {"input_activations": dict(_TOKENS)} if self.activations else group

    def packer(self, rows: int, scale_dtype: ScaleDtype) -> Packer:
        """Returns the packer for a layer. rows: number of its rows."""
        if self.activations:
            return Int8Weight(scale_dtype)
        return PackedWeight(self.bits, rows, self.group_size, self.symmetric, scale_dtype)

    def spec(self, scale_dtype: ScaleDtype) -> QuantSpec:
        """Returns the settings for quantizing values to this scheme."""
        return QuantSpec(
            f"int{self.bits}",
            per_channel=not self.group_size,
            group_size=self.group_size,
            symmetric=self.symmetric,
            method="rtn" if self.bits == 8 else "mse",
            integer_zero_points=not self.symmetric,
            scale_dtype=_SCALES[scale_dtype],
        )
