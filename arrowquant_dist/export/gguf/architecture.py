"""An architecture of llama.cpp: its metadata, and a place for each of the model's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from arrowquant_dist.errors import InvalidCheckpoint, listed
from arrowquant_dist.export.gguf.settings import OTHER_WAY

Value = int | float | bool | str


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor of the model goes.

    name: in GGUF. shape: the shape it has to have. stored: `matrix` for whatever blocks its codes allow; `F32` for
    vectors, which llama.cpp adds or multiplies in no other dtype. head_rows: rows of an attention head if the rows of
    its halves have to alternate, or 0. optional: whether llama.cpp can do without it.
    """

    name: str
    shape: tuple[int, ...]
    stored: Literal["matrix", "F32"] = "matrix"
    head_rows: int = 0
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture.

    name: `general.architecture`. fields: metadata by key without the architecture's name; whole numbers become uint32,
    others float32. places: by the model's own names. embedding: the name, among these, of the token embeddings.
    vocabularies: kinds of tokenizers that it may have. left_out: prefixes of names that llama.cpp has no use for.
    token_types: number of token type embeddings, or 0. rope_factors: divisors of the rotary frequencies, or () if they
    do not change. notes: for people.
    """

    name: str
    fields: Mapping[str, Value]
    places: Mapping[str, TensorPlace]
    embedding: str
    vocabularies: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    token_types: int = 0
    rope_factors: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    def placed(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorPlace]:
        """Returns a place for each name that is not left out, in the order of `shapes`.

        shapes: those of the layers by the model's names, aliases included. Raises InvalidCheckpoint if a layer is
        unknown, is missing or has another shape.
        """
        kept = {name: shape for name, shape in shapes.items() if not self.leaves_out(name)}
        unknown = [name for name in kept if name not in self.places]
        if unknown:
            raise InvalidCheckpoint(
                f"{_some(unknown)} {listed(unknown)} {_is(unknown)} not known in GGUF's {self.name}; {OTHER_WAY}"
            )
        missing = [name for name, place in self.places.items() if not place.optional and name not in kept]
        if missing:
            raise InvalidCheckpoint(
                f"{_some(missing)} {listed(missing)} {_is(missing)} missing, and llama.cpp cannot load "
                f"{self.name} without; quantize the whole model"
            )
        for name, shape in kept.items():
            if shape != self.places[name].shape:
                raise InvalidCheckpoint(
                    f"it has shape {list(shape)}, but config.json implies {list(self.places[name].shape)}; use the "
                    "config.json that belongs to these weights",
                    layer=name,
                )
        return {name: self.places[name] for name in kept}

    def leaves_out(self, name: str) -> bool:
        return name.startswith(self.left_out) if self.left_out else False


def _some(names: Iterable[str]) -> str:
    return "layers" if len([*names]) > 1 else "layer"


def _is(names: Iterable[str]) -> str:
    return "are" if len([*names]) > 1 else "is"
