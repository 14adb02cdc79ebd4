"""What a method is: the protocol, what it is given, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
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


class SideInput(Protocol):
    """What a method needs of each layer beside its values: float32 tensors of a checkpoint whose URI the config has.

    They are stored there under `{layer}.{part}`, plain and in any format that is read by ranges (safetensors). The
    plan looks them up in the headers, puts their files' identities into its fingerprint and their sizes into a worker's
    memory, and refuses a layer without them. A worker reads those of a layer when it comes to its first row block, and
    keeps what `prepare` makes of them until it comes to another layer.
    config_field: the field of QuantizationConfig that holds the URI, as in METHODS of method_names.
    """

    @property
    def config_field(self) -> str: ...

    def shapes(self, layer_shape: tuple[int, ...], row_dims: int) -> Mapping[str, tuple[int, ...]]:
        """{part: shape} of the tensors that the layer must have."""

    def prepare(self, tensors: Mapping[str, np.ndarray], spec: QuantSpec) -> Any:
        """{part: float32 [shape], read-only} → what `quantize` is given with each row block of the layer. May keep the
        tensors, which nobody else holds."""

    def work_nbytes(self, rows: int, columns: int) -> int:
        """Upper bound of the memory that `prepare`, and `quantize` of a block of so many rows, take beside the tensors
        as they are stored."""


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
