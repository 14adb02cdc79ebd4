"""What an architecture of llama.cpp is made of: metadata, and a place for each of the model's tensors."""

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

    name: in GGUF. shape: what it has to have. stored: `matrix`, in whatever blocks its codes make; `F32`, which is all
    that llama.cpp adds or multiplies vectors in. head_rows: of an attention head, where its rows are to take turns.
    optional: llama.cpp does without.
    """

    name: str
    shape: tuple[int, ...]
    stored: Literal["matrix", "F32"] = "matrix"
    head_rows: int = 0
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Architecture:
    """name: `general.architecture`. fields: metadata by keys without the architecture's name before them; whole numbers
    become uint32, others float32. places: by the model's own names. embedding: the name, among these, of the token
    embeddings. vocabularies: kinds of tokenizers. left_out: names that begin so serve nothing in llama.cpp.
    token_types: how many embeddings of these, or 0. rope_factors: what each rotary frequency is divided by, or () where
    all stay. notes: for people.
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
        """A place for each name but those that are left out, in the order of `shapes`.

        shapes: of layers by the model's names, aliases included. InvalidCheckpoint where a layer is not known, is
        missing or has another shape.
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
                f"{_some(missing)} {listed(missing)} {_is(missing)} missing, without which llama.cpp loads no "
                f"{self.name}; quantize the whole model"
            )
        for name, shape in kept.items():
            if shape != self.places[name].shape:
                raise InvalidCheckpoint(
                    f"it has shape {list(shape)}, and by config.json {list(self.places[name].shape)}; take the "
                    "config.json of these weights",
                    layer=name,
                )
        return {name: self.places[name] for name in kept}

    def leaves_out(self, name: str) -> bool:
        return name.startswith(self.left_out) if self.left_out else False


def _some(names: Iterable[str]) -> str:
    return "layers" if len([*names]) > 1 else "layer"


def _is(names: Iterable[str]) -> str:
    return "are" if len([*names]) > 1 else "is"
