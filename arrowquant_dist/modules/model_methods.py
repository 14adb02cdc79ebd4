"""Replacements for methods of transformers' models that treat weights as tensors, for a model whose weights are codes.

They are set on the model itself and shadow the methods of its class. Those would raise an error that tells a user
nothing, return a number that is wrong for the model, or write a checkpoint that is read back as random values.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.modules.embedding import QuantEmbedding
from arrowquant_dist.modules.weight import CodesLayer, QuantWeight

_TIED_KEYS = "all_tied_weights_keys"  # in a model of transformers 5: {tied name: name of its source}


def put_codes_methods(model: torch.nn.Module) -> None:
    """Sets the methods on the model and on models within it, each only where a method of that name exists."""
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
    """Replaces save_pretrained: transformers would write codes under names that it does not know when it reads them
    back, and would then fill the model with random values."""
    message = (
        "a model whose weights are codes cannot be saved as a checkpoint of transformers; write one from the dataset "
        "with arrowquant export TARGET OUT --format safetensors, or load the model without codes=True"
    )
    raise InvalidConfig(message)


def refuse_resizing(*_: object, **__: object) -> None:
    """Replaces resize_token_embeddings, which would need rows that no layer of the dataset has."""
    message = (
        "embeddings of a model whose weights are codes cannot be resized; load the model without codes=True, or "
        "resize the source and quantize that"
    )
    raise InvalidConfig(message)


def refuse_decoding(*_: object, **__: object) -> None:
    """Replaces dequantize, which would claim that the model is not quantized."""
    message = (
        "a model whose weights are codes cannot be decoded in place; load the model without codes=True, or get "
        "the values of a layer by its weight.dequantize()"
    )
    raise InvalidConfig(message)


class CodesMethod:
    """A method of one model. It refers to the model weakly, so that the model is freed with its last other reference;
    copies and pickles of the model get a method of their own."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = weakref.ref(model)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model,)

    @property
    def model(self) -> Any:
        found = self._model()
        if found is None:
            raise ReferenceError("the model that this method belongs to no longer exists")
        return found


class TieWeights(CodesMethod):
    """Replaces tie_weights, which only handles parameters and buffers."""

    def __call__(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:  # noqa: FBT001, FBT002
        """Ties as transformers' own method does; modules whose source has codes share these.

        Raises InvalidConfig where one of two tied weights has codes and the other values, or their shapes differ.
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
    """Replaces num_parameters, which only counts parameters."""

    def __call__(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:  # noqa: FBT001, FBT002
        """Counts as transformers' own method does for the decoded model; values that are codes are not trainable."""
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
    """Yields each weight that is codes once, with the first of the modules that share it."""
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, CodesLayer) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            yield module, module.weight


def _share_codes(model: torch.nn.Module, name: str, source: str) -> bool:
    """Returns whether both are weights of codes; if so, gives the module of `name` the weight of `source`."""
    (to, attribute), (of, name_there) = _place(model, name), _place(model, source)
    there, here = getattr(of, name_there), getattr(to, attribute)
    if not isinstance(there, QuantWeight) and not isinstance(here, QuantWeight):
        return False
    if not isinstance(there, QuantWeight) or not isinstance(here, QuantWeight):
        kinds = {True: "codes", False: "values"}
        message = (
            f"{name} has {kinds[isinstance(here, QuantWeight)]}, but {source}, which it is tied to, "
            f"has {kinds[isinstance(there, QuantWeight)]}; set tie_word_embeddings=False in the model's config, or "
            "load the model without codes=True"
        )
        raise InvalidConfig(message)
    setattr(to, attribute, there)
    return True


def _place(model: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    parent, _, attribute = name.rpartition(".")
    return model.get_submodule(parent), attribute


# By name and not bound to a model, so that copies and pickles of a model refuse as well.
_REFUSALS: dict[str, Callable[..., None]] = {
    "save_pretrained": refuse_saving,
    "push_to_hub": refuse_saving,
    "resize_token_embeddings": refuse_resizing,
    "dequantize": refuse_decoding,
}
_METHODS: dict[str, type[CodesMethod]] = {"tie_weights": TieWeights, "num_parameters": CountParameters}
