"""How compressed-tensors describes a quantized Linear: bits, what shares a scale, zero points, activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.export.compressed_tensors.packers import Int8Weight, PackedWeight, ScaleDtype
from arrowquant_dist.export.tensors import Packer

LINEAR_BITS = (2, 4, 8)  # 3 are packed in two ways: densely since 0.18, ten codes a word before
_SCALES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # what codes are chosen for
_TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}


@dataclass(frozen=True, slots=True)
class LinearScheme:
    """bits: of LINEAR_BITS. group_size: columns a scale; 0: a scale a row. symmetric: no zero points; else whole ones.
    activations: they become int8 too, a scale a token, when the model runs (W8A8); 8 bits, symmetric, by row alone."""

    bits: int
    group_size: int
    symmetric: bool
    activations: bool = False

    @property
    def label(self) -> str:
        """For people: `int4 in groups of 128 with whole zero points`."""
        scope = f"in groups of {self.group_size}" if self.group_size else "by row"
        zeros = "" if self.symmetric else " with whole zero points"
        return f"int{self.bits} {scope}{zeros}"

    @property
    def width(self) -> tuple[int, float, bool]:
        """The larger, the closer to the weights."""
        return self.bits, -float(self.group_size or float("inf")), not self.symmetric

    @property
    def format(self) -> str:
        return "int-quantized" if self.activations else "pack-quantized"

    def config_group(self, targets: Sequence[str]) -> dict[str, Any]:
        """A member of `config_groups`, with the least that readers need: keys that they do not know are errors."""
        weights: dict[str, Any] = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric}
        weights |= (
            {"strategy": "group", "group_size": self.group_size}
            if self.group_size
            else {"strategy": "channel"}
        )
        group = {"targets": list(targets), "format": self.format, "weights": weights}
        return group | {"input_activations": dict(_TOKENS)} if self.activations else group

    def packer(self, rows: int, scale_dtype: ScaleDtype) -> Packer:
        """rows: of the layer."""
        if self.activations:
            return Int8Weight(scale_dtype)
        return PackedWeight(self.bits, rows, self.group_size, self.symmetric, scale_dtype)

    def spec(self, scale_dtype: ScaleDtype) -> QuantSpec:
        """What quantizes values to it."""
        return QuantSpec(
            f"int{self.bits}",
            per_channel=not self.group_size,
            group_size=self.group_size,
            symmetric=self.symmetric,
            method="rtn" if self.bits == 8 else "mse",
            integer_zero_points=not self.symmetric,
            scale_dtype=_SCALES[scale_dtype],
        )
