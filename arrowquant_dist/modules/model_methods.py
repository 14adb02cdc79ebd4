"""Methods of transformers' models that see weights as tensors, for a model whose weights are codes.

They take the place of the class's own on the model itself. What they replace would raise an error that says nothing to
a user, give a number that is not the model's, or write a checkpoint that is read as random values.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.modules.embedding import QuantEmbedding
from arrowquant_dist.modules.weight import CodesLayer, QuantWeight

_TIED_KEYS = "all_tied_weights_keys"  # {tied name: its source} of a model of transformers 5


def put_codes_methods(model: torch.nn.Module) -> None:
    """Puts them on the model and the models in it; on each those alone whose name it has."""
    for module in model.modules():
        if isinstance(module, QuantWeight | CodesLayer):
            continue
        for name, refusal in _REFUSALS.items():
            if hasattr(module, name):
                setattr(module, name, refusal)
        for name, method in _METHODS.items():
            if hasattr(module, name) and hasattr(module, _TIED_KEYS):
                setattr(module, name, method(module))


def refuse_saving(*_: object, **__: object) -> None:
    """In the place of save_pretrained: transformers would write codes under names that it does not know when it reads
    them, and would then fill the model with random values."""
    message = (
        "a model whose weights are codes cannot be saved as a checkpoint of transformers; write one from the dataset, "
        "as arrowquant export TARGET OUT --format safetensors, or load_model it without codes=True"
    )
    raise InvalidConfig(message)


def refuse_resizing(*_: object, **__: object) -> None:
    """In the place of resize_token_embeddings, which would need rows that no layer of the dataset has."""
    message = (
        "embeddings of a model whose weights are codes cannot get other sizes; load_model it without codes=True, or "
        "resize the source and quantize that"
    )
    raise InvalidConfig(message)


def refuse_decoding(*_: object, **__: object) -> None:
    """In the place of dequantize, which says that the model is not quantized."""
    message = (
        "a model whose weights are codes cannot be decoded where it is; load_model it without codes=True, or take the "
        "values of a layer by its weight.dequantize()"
    )
    raise InvalidConfig(message)


class CodesMethod:
    """A method of one model. It refers to it weakly, so that a model goes with its last reference, and copies and
    pickles of the model get one that is theirs."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = weakref.ref(model)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model,)

    @property
    def model(self) -> Any:
        found = self._model()
        if found is None:
            raise ReferenceError("the model that this is a method of is gone")
        return found


class TieWeights(CodesMethod):
    """In the place of tie_weights, which knows of parameters and buffers alone."""

    def __call__(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:  # noqa: FBT001, FBT002
        """As transformers' own; modules whose source has codes share them.

        InvalidConfig where one of two has codes and the other one values, or they are of two shapes.
        """
        model = self.model
        found = model.get_expanded_tied_weights_keys(all_submodels=True)
        every = found if recompute_mapping else getattr(model, _TIED_KEYS)
        others = {name: source for name, source in every.items() if not _share_codes(model, name, source)}
        kept = getattr(model, _TIED_KEYS)
        try:
            setattr(model, _TIED_KEYS, others)
            type(model).tie_weights(model, missing_keys=missing_keys, recompute_mapping=False)
        finally:
            setattr(model, _TIED_KEYS, kept)


class CountParameters(CodesMethod):
    """In the place of num_parameters, which counts parameters alone."""

    def __call__(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:  # noqa: FBT001, FBT002
        """As transformers' own, of the decoded model; values that are codes are not trained."""
        model = self.model
        count: int = type(model).num_parameters(model, only_trainable, exclude_embeddings)
        if only_trainable:
            return count
        return count + sum(
            weight.numel()
            for layer, weight in _coded(model)
            if not (exclude_embeddings and isinstance(layer, QuantEmbedding))
        )


def _coded(model: torch.nn.Module) -> Iterator[tuple[CodesLayer, QuantWeight]]:
    """Weights of codes, each once, with the first of the modules that share it."""
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, CodesLayer) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            yield module, module.weight


def _share_codes(model: torch.nn.Module, name: str, source: str) -> bool:
    """Whether the two are weights of codes; the first one's module then has the second one's."""
    (to, attribute), (of, name_there) = _place(model, name), _place(model, source)
    there, here = getattr(of, name_there), getattr(to, attribute)
    if not isinstance(there, QuantWeight) and not isinstance(here, QuantWeight):
        return False
    if not isinstance(there, QuantWeight) or not isinstance(here, QuantWeight):
        kinds = {True: "codes", False: "values"}
        message = (
            f"{name} has {kinds[isinstance(here, QuantWeight)]} and {source}, which it is tied to, "
            f"{kinds[isinstance(there, QuantWeight)]}; set tie_word_embeddings=False in the model's config, or "
            "load_model it without codes=True"
        )
        raise InvalidConfig(message)
    setattr(to, attribute, there)
    return True


def _place(model: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    parent, _, attribute = name.rpartition(".")
    return model.get_submodule(parent), attribute


# By name and not bound to a model, so that copies and pickles of it refuse as well.
_REFUSALS: dict[str, Callable[..., None]] = {
    "save_pretrained": refuse_saving,
    "push_to_hub": refuse_saving,
    "resize_token_embeddings": refuse_resizing,
    "dequantize": refuse_decoding,
}
_METHODS: dict[str, type[CodesMethod]] = {"tie_weights": TieWeights, "num_parameters": CountParameters}
