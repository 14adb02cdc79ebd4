"""A layer that is read for its codes, whatever encoding it has, where everything else is read for its values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from arrowquant_dist.config.spec import QuantSpec
from arrowquant_dist.encodings.encoding import Encoding, Slice, Stored


@dataclass(frozen=True, slots=True)
class KeptCodes(Encoding):
    """`slice` gives whole rows of codes, as tensor/kept.py lays them out. own: how the source stores the layer, which
    is what plans have. spec: what its `kept_spec` gave."""

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
