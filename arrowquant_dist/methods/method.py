"""The protocol of methods, what a method is given, and what it returns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.metrics import ErrorSums


@dataclass(frozen=True, slots=True)
class TensorScale:
    """The single scale and zero point (0 if symmetric) of a tensor, float32 values."""

    scale: float
    zero_point: float


@dataclass(frozen=True, slots=True)
class Given:
    """What a method knows about a layer besides the row block at hand.

    scale: the scale of the whole layer, if it has a single one; None if the values at hand are the whole layer.
    side: what the method's side input has prepared for the layer; None for methods without a side input.
    row_start: index in the layer of the block's first row.
    """

    scale: TensorScale | None = None
    side: Any = None
    row_start: int = 0


NOTHING = Given()


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a method returns besides the codes.

    scales: float32 [rows · groups per row], or [1] for the whole tensor. zero_points: float32, as many as scales, or
    [0] if symmetric. errors: error sums of the decoded codes against the values."""

    scales: np.ndarray
    zero_points: np.ndarray
    errors: ErrorSums


class PartReader(Protocol):
    """Reads the tensors of a layer's side input. parts: names of those that the layer has."""

    @property
    def parts(self) -> Collection[str]: ...

    def __call__(self, part: str, start: int, stop: int) -> np.ndarray:
        """Values [start, stop) of the part, in C order: float32 [stop - start], owned by the caller, who may overwrite
        them. Raises what reading raises."""


class SideInput(Protocol):
    """What a method needs for each layer besides its values: float32 tensors of a checkpoint that the config names.

    They are stored there under `{layer}.{part}`, unquantized, in any format that can be read by ranges (safetensors).
    The plan looks them up in the headers, includes their files' identities in its fingerprint and their sizes in a
    worker's memory, and refuses a layer that lacks them. When a worker comes to a layer's first row block, it calls
    `prepare` for what the method is given, and keeps the result until it comes to another layer.
    config_field: the field of QuantizationConfig that holds the URI, as in METHODS of method_names.
    finished_by: the JSON file that is written to that folder last, without which nothing is read; None if there is
    none.
    format_version: the value that this file must have under the key `format_version`; None if it has none.
    is_of_weights: whether this file says, under `weights`, which model it was made from (checkpoint/sampled.py), so
    that the weights of another model are refused.
    exempt: parts that a layer has in place of the needed ones, to say that nothing is known about it, or nothing of use
    for its spec. Such a layer is quantized by the spec that `instead` returns, and the plan's notes say so.
    """

    @property
    def config_field(self) -> str: ...

    @property
    def finished_by(self) -> str | None: ...

    @property
    def format_version(self) -> int | None: ...

    @property
    def is_of_weights(self) -> bool: ...

    @property
    def exempt(self) -> Collection[str]: ...

    def needed(self, spec: QuantSpec) -> Sequence[str]:
        """Parts of which a layer must have at least one, the usual one first; the method cannot work without."""

    def instead(self, spec: QuantSpec) -> QuantSpec:
        """The spec, with another method, for a layer about which nothing is known."""

    def shapes(self, layer_shape: tuple[int, ...], row_dims: int) -> Mapping[str, tuple[int, ...]]:
        """{part: shape} of all tensors that the method uses if the layer has them."""

    def rows_together(self, layer_shape: tuple[int, ...], row_dims: int, parts: Collection[str], /) -> int:
        """Number of rows whose codes depend on each other: runs of so many rows, from the layer's first, must not be
        split between row blocks. 1 if rows are independent."""

    def prepare(self, layer: str, layer_shape: tuple[int, ...], row_dims: int, read: PartReader, /) -> Any:
        """What `quantize` is given with each row block of the layer, by a single thread. It may keep `read`."""

    def work_nbytes(
        self, layer_shape: tuple[int, ...], row_dims: int, rows: int, parts: Collection[str], /
    ) -> int:
        """Upper bound, in bytes, of the memory taken by what was prepared from these parts and by `quantize` for a
        block of so many rows."""


class Span(Protocol):
    """What is gathered from all row blocks of a layer, in any order, before the first one is quantized."""

    def add(self, bits: np.ndarray) -> None:
        """Adds one row block. bits: as in Method.quantize."""

    def scale(self) -> TensorScale: ...


class Method(Protocol):
    """Chooses scales and codes for one row block at a time; stateless, called from several threads.

    name: the value of `method` in a spec. Codes depend only on the values and on what is given: neither the size of
    blocks nor the number of threads may change a code.
    """

    @property
    def name(self) -> str: ...

    @property
    def side_input(self) -> SideInput | None: ...

    def quantize(self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, /) -> Found | None:
        """Chooses scales, zero points and codes, and writes the codes.

        bits: [rows, columns], not empty, read-only, C order: bits of float32 as int32, of bfloat16 as uint16, of
        float16 as int16. codes: uint8 [rows, row bytes], uninitialised: receives codes packed as in V2's `data`.

        Returns None if a value is not finite; `codes` are then meaningless.
        """


class TensorMethod(Method, Protocol):
    """A method with one scale for a whole layer; a layer with several row blocks is read twice."""

    def span(self, spec: QuantSpec, /) -> Span:
        """An empty span. Its scale is later given to `quantize` with each row block."""
