"""Chooses what each layer is written as: as it is stored, in the format's nearest scheme, or in the source's dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace

from arrowquant_dist.config import BITS
from arrowquant_dist.dataset.layers import StoredBlock, StoredLayer
from arrowquant_dist.errors import counted
from arrowquant_dist.export.advice import KEEP, Advice
from arrowquant_dist.export.compressed_tensors.packers import ScaleDtype
from arrowquant_dist.export.compressed_tensors.schemes import LINEAR_BITS, LinearScheme
from arrowquant_dist.export.compressed_tensors.stored import StoredScales

_USUAL_GROUPS = (128, 64, 32)  # sizes that GPU kernels support


@dataclass(frozen=True, slots=True)
class Unwritable:
    """Why a layer cannot be written as it is stored, and what a user can do about it when quantizing."""

    reason: str
    advice: Advice


_SHORT = Advice("quantize with scale_dtype: bfloat16", "quant_type and scale_dtype: bfloat16")
_DIVIDE = Advice(
    "choose a group_size that divides the columns, or per_channel: true", "quant_type and per_channel: true"
)
_WHOLE = Advice(
    "quantize with integer_zero_points: true, or symmetric: true", "quant_type and integer_zero_points: true"
)
_FOUR = Advice("quantize to int4", "quant_type: int4")
_BY_ROW = Advice(
    "quantize to int8 with per_channel: true and symmetric: true",
    "quant_type: int8, per_channel: true and symmetric: true",
)
_NAMES = {"BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True)
class OutputLayer:
    """A layer of the output: rows [row_start, row_stop) of a stored layer, which are all rows except for unfused
    experts.

    name: in the output. layer: the stored layer. shape: in the output. never: why it cannot be quantized, whatever its
    scales are; None if it is a Linear. turned: for an expert whose rows are inputs, the modules that its values become,
    each transposed.
    """

    name: str
    layer: StoredLayer
    shape: tuple[int, ...]
    row_start: int
    row_stop: int
    never: str | None = None
    turned: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name shown to people: for an expert whose modules have other names, that of the dataset's layer."""
        return self.layer.name if self.turned else self.name

    @property
    def is_quantized(self) -> bool:
        return any(block.header.quant_type in BITS for block in self.layer.blocks)


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """What a layer is written as.

    part: the layer. scheme: what it is written as; None for the source's dtype. scale_dtype: dtype of its scales.
    problems: why the scheme is not the stored one; empty if codes are written as they are. stored: the scheme of the
    stored codes, whatever their bits; None if no scheme has their zero points. rounds_scales: whether the scales of the
    codes are rounded to `scale_dtype`.
    """

    part: OutputLayer
    scheme: LinearScheme | None = None
    scale_dtype: ScaleDtype = "F32"
    problems: tuple[Unwritable, ...] = ()
    stored: LinearScheme | None = None
    rounds_scales: bool = False

    @property
    def finer(self) -> int | None:
        """The number of groups that each stored group becomes in `scheme`, if that can hold the stored values in at
        least as many bits; None if they have to be quantized anew."""
        if self.scheme is None or self.stored is None:
            return None
        columns = self.part.shape[1]
        group, wanted = (scheme.group_size or columns for scheme in (self.stored, self.scheme))
        is_held = self.scheme.bits >= self.stored.bits and self.scheme.symmetric == self.stored.symmetric
        return group // wanted if is_held and group % wanted == 0 else None

    def as_scheme(self, scheme: LinearScheme | None, problem: Unwritable) -> LayerChoice:
        """Returns the same part in another scheme."""
        return replace(self, scheme=scheme, problems=(*self.problems, problem))


def choose_scheme(
    part: OutputLayer, scales: StoredScales | None, scale_dtype: ScaleDtype, *, activations: bool
) -> LayerChoice:
    """Chooses what a layer is written as. scales: those of the stored layer; None if one of its blocks is not
    quantized. scale_dtype: that of the model. activations: whether int8 codes are to be multiplied with int8
    activations."""
    if not part.is_quantized:
        return LayerChoice(part)
    kept = LayerChoice(part, scale_dtype=scale_dtype)
    if part.never is not None:
        return kept.as_scheme(None, Unwritable(part.never, KEEP))
    header = part.layer.blocks[0].header
    if scales is None or len(set(map(_layout, part.layer.blocks))) > 1:
        return kept.as_scheme(
            None, Unwritable("its rows are not all quantized, or not all in the same way", KEEP)
        )
    columns = part.shape[1]
    group_size = header.group_size if header.group_size <= columns else 0
    stored = LinearScheme(BITS[header.quant_type], group_size, scales.symmetric)
    wanted, problems = _nearest(stored, columns, scales, activations=activations)
    held = scale_dtype in scales.held_by
    if activations:
        wanted = replace(wanted, activations=True)
        scale_dtype = scale_dtype if held else "F32"  # vLLM uses float32 in this case
    elif not held:
        problem = _rounded(scales, scale_dtype)
        if scale_dtype not in scales.kept_by:
            return kept.as_scheme(None, problem)
        problems = (*problems, problem)
    stored_codes = stored if scales.whole else None
    return LayerChoice(
        part, wanted, scale_dtype, problems, stored_codes, rounds_scales=not (held or activations)
    )


def _rounded(scales: StoredScales, scale_dtype: ScaleDtype) -> Unwritable:
    """Returns the problem with scales that `scale_dtype` cannot represent."""
    reason = (
        f"scales that {_NAMES[scale_dtype]}, the model's dtype, cannot represent: readers would round them"
    )
    if scale_dtype not in scales.kept_by:
        reason += ", and values with them"
    # bfloat16 numbers too small to have all their digits in float16, or too large for it, would be rounded again
    return Unwritable(reason, _SHORT if scale_dtype == "BF16" or scales.short_halves else KEEP)


def _layout(block: StoredBlock) -> tuple[str, int, int]:
    return block.header.quant_type, block.header.group_size, block.header.quant_axis


def _nearest(
    stored: LinearScheme, columns: int, scales: StoredScales, *, activations: bool
) -> tuple[LinearScheme, tuple[Unwritable, ...]]:
    """Returns the nearest scheme that can be written, and why it is not the stored one."""
    if activations and stored != LinearScheme(8, 0, symmetric=True):
        reason = f"{stored.label}, but --activations int8 needs int8 codes with one scale per row"
        return LinearScheme(8, 0, symmetric=True), (Unwritable(reason, _BY_ROW),)
    scheme, problems = stored, []
    if scheme.bits not in LINEAR_BITS:
        problems.append(Unwritable("int3, which readers of different versions unpack differently", _FOUR))
        scheme = replace(scheme, bits=4)
    if not scales.whole:
        problems.append(Unwritable("zero points that are not whole numbers within the codes' range", _WHOLE))
    if scheme.group_size and columns % scheme.group_size:
        reason = f"a short last group ({counted(columns, 'column')} in groups of {scheme.group_size})"
        problems.append(Unwritable(reason, _DIVIDE))
        scheme = replace(scheme, group_size=_dividing(columns, scheme.group_size))
    return scheme, tuple(problems)


def _dividing(columns: int, group_size: int) -> int:
    """Returns the largest group size up to `group_size` that divides the columns, preferably one that kernels support;
    0 for one scale per row if no divisor is 16 or more."""
    usual = [size for size in _USUAL_GROUPS if size <= group_size and columns % size == 0]
    if usual:
        return usual[0]
    return next((size for size in range(group_size, 15, -1) if columns % size == 0), 0)
