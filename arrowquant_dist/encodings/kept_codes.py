"""A layer, of any encoding, that is read as codes, while all other layers are read as values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from arrowquant_dist.config.spec import QuantSpec
from arrowquant_dist.encodings.encoding import Encoding, Slice, Stored


@dataclass(frozen=True, slots=True)
class KeptCodes(Encoding):
    """`slice` gives whole rows of codes, in the layout of tensor/kept.py.

    own: how the source stores the layer; plans record this one. spec: what `own.kept_spec` returned."""

    own: Encoding
    spec: QuantSpec
    kind: ClassVar[str] = "kept_codes"
    may_be_a_copy: ClassVar[bool] = False

    @property
    def label(self) -> str:
        return self.own.label

    def slice(self, layer: Stored, start: int, stop: int) -> Slice:
        columns = math.prod(layer.shape[self.spec.row_dims :])
        return self.own.kept_slice(layer, range(start // columns, stop // columns), self.spec)
