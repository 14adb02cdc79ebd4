"""What a method is: the protocol, what it is given, and what it finds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.metrics import ErrorSums


@dataclass(frozen=True, slots=True)
class TensorScale:
    """The one scale and zero point (0 where symmetric) of a tensor, float32 values."""

    scale: float
    zero_point: float


@dataclass(frozen=True, slots=True)
class Given:
    """What a method knows of a layer besides the row block at hand.

    scale: of the whole layer, where it has but one; None: these values are all there is of it.
    side: what the method's side input has prepared for the layer; None for methods without one.
    row_start: the block's first row in its layer.
    """

    scale: TensorScale | None = None
    side: Any = None
    row_start: int = 0


NOTHING = Given()


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """scales: float32 [rows · groups a row], or [1] for the whole tensor; zero_points: as long, or [0] where symmetric.
    errors: of the decoded codes against the values."""

    scales: np.ndarray
    zero_points: np.ndarray
    errors: ErrorSums


class PartReader(Protocol):
    """Reads what a layer's side input holds. parts: those that the layer has."""

    @property
    def parts(self) -> Collection[str]: ...

    def __call__(self, part: str, start: int, stop: int) -> np.ndarray:
        """float32 [stop - start], those values of the part in C order; the caller's own, to write over. Raises what
        reading raises."""


class SideInput(Protocol):
    """What a method needs of each layer beside its values: float32 tensors of a checkpoint whose URI the config has.

    They are stored there under `{layer}.{part}`, plain and in any format that is read by ranges (safetensors). The
    plan looks them up in the headers, puts their files' identities into its fingerprint and their sizes into a worker's
    memory, and refuses a layer without them. A worker asks `prepare` for what the method is given when it comes to a
    layer's first row block, and keeps it until it comes to another layer.
    config_field: the field of QuantizationConfig that holds the URI, as in METHODS of method_names.
    finished_by: the JSON file that is written to that folder last, without which nothing is read; None: there is none.
    format_version: what that file has to have under this key, None where it has none.
    is_of_weights: whether that file says under `weights` of which model it was made (checkpoint/sampled.py), so that
    the weights of another one are refused.
    exempt: parts that a layer has instead of what is needed to say that nothing is known of it, or nothing that serves
    its spec; it is then quantized as `instead` says, and a note of the plan says so.
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
        """Parts of which a layer has to have one, the usual one first; without any the method does nothing."""

    def instead(self, spec: QuantSpec) -> QuantSpec:
        """The spec, of another method, of a layer that nothing is known of."""

    def shapes(self, layer_shape: tuple[int, ...], row_dims: int) -> Mapping[str, tuple[int, ...]]:
        """{part: shape} of all tensors that the method makes use of where the layer has them."""

    def rows_together(self, layer_shape: tuple[int, ...], row_dims: int, parts: Collection[str], /) -> int:
        """Runs of so many rows, from the first one on, are in one row block each: their codes depend on each other. 1
        where rows are independent."""

    def prepare(self, layer: str, layer_shape: tuple[int, ...], row_dims: int, read: PartReader, /) -> Any:
        """What `quantize` is given with each row block of the layer, by one thread. It may keep `read`."""

    def work_nbytes(
        self, layer_shape: tuple[int, ...], row_dims: int, rows: int, parts: Collection[str], /
    ) -> int:
        """Upper bound of the memory that what was prepared of these parts, and `quantize` of a block of so many rows,
        take."""


class Span(Protocol):
    """What is taken of a layer's row blocks, in any order, before the first one is quantized."""

    def add(self, bits: np.ndarray) -> None:
        """bits: of one row block, as Method.quantize has them."""

    def scale(self) -> TensorScale: ...


class Method(Protocol):
    """Chooses scales and codes of one row block at a time; stateless, called from several threads.

    name: `method` of a spec. Values decide, and what is given: neither block size nor threads may change a code.
    """

    @property
    def name(self) -> str: ...

    @property
    def side_input(self) -> SideInput | None: ...

    def quantize(self, bits: np.ndarray, spec: QuantSpec, codes: np.ndarray, given: Given, /) -> Found | None:
        """bits: [rows, columns], not empty, read-only, C order: int32 float32, uint16 bfloat16, int16 float16 bits.
        codes: uint8 [rows, row bytes], uninitialised: packed codes as V2's `data`, written here.

        Returns None where a value is not finite; `codes` are then meaningless.
        """


class TensorMethod(Method, Protocol):
    """A method with one scale for all of a layer, whose row blocks are read twice where it has several."""

    def span(self, spec: QuantSpec, /) -> Span:
        """An empty span. Its scale is what `quantize` is given with each row block."""
