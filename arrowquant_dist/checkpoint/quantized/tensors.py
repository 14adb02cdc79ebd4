"""The stored tensors of a checkpoint by name, and what became of them when codes and scales were put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from arrowquant_dist.checkpoint.quantized.names import scale_names
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.encodings.encoding import Encoding
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.raw import RAW
from arrowquant_dist.errors import InvalidCheckpoint


@dataclass(slots=True)
class Tensors:
    """The stored tensors, and what became of them.

    by_name: every stored tensor, including those that share their bytes with another.
    dtype: the dtype that codes are decoded to.
    layers: {name of the codes: the layer they became}.
    parts: {name of a tensor: the layer that it is a part of}.
    left_out: {name of a tensor: why it is not a layer}.
    kept: {name of a tensor: why it stays byte for byte}.
    """

    by_name: Mapping[str, Layer]
    dtype: str
    layers: dict[str, Layer] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def add(
        self,
        codes: Layer,
        name: str,
        shape: tuple[int, ...],
        encoding: Encoding,
        parts: list[str],
        dtype: str | None = None,
    ) -> None:
        """Turns `codes` into the layer `name` of `shape`; the tensors named in `parts` are then no layers of their
        own. dtype: the dtype that these codes are decoded to, if it differs from that of all."""
        if name != codes.name and name in self.by_name:
            refuse(f"it is stored a second time, as {codes.name}; keep one of them", self.by_name[name])
        layer = Layer(name, shape, dtype or self.dtype, codes.uri, codes.offset, codes.nbytes, encoding)
        self.layers[codes.name] = layer
        self.parts |= dict.fromkeys(parts, name)
        if name != codes.name:
            self.parts[codes.name] = name

    def is_free(self, name: str) -> bool:
        """Whether a stored tensor has not become, or become part of, anything yet."""
        is_taken = name in self.layers or name in self.parts or name in self.kept or name in self.left_out
        return not is_taken and name in self.by_name

    def leave_out(self, names: Iterable[str], why: str) -> None:
        """Marks tensors that are no layers of the full-precision model: the plan lists them, the dataset omits them."""
        self.left_out |= {name: why for name in names if self.is_free(name)}

    def keep(self, names: Iterable[str], why: str) -> None:
        """Marks layers that stay byte for byte. why: the reason, as a plan shows it: "codes of HQQ, which …"."""
        self.kept |= {name: why for name in names if self.is_free(name)}

    def scales_of(self, codes: str) -> Layer | None:
        """The scales of the tensor `codes`, found by their name."""
        return next((self.by_name[found] for found in scale_names(codes) if found in self.by_name), None)

    def place(self, layer: Layer, dtype: str | None = None) -> Place:
        """The place of a stored tensor. dtype: what its bytes mean, if its own dtype does not tell (uint8 for e8m0)."""
        if layer.encoding != RAW:
            refuse(
                "its values are not contiguous, which codes and scales have to be; save it contiguous", layer
            )
        return Place(layer.uri, layer.offset, dtype or layer.dtype, layer.shape)


def refuse(message: str, layer: Layer) -> NoReturn:
    raise InvalidCheckpoint(message, layer=layer.name, uri=layer.uri)
