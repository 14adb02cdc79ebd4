"""Fills a torch module from a dataset with its matrices as codes: `load_into` without decoding them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from arrowquant_dist.config import Activations
from arrowquant_dist.config.checks import check_bool, shown
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.loader import LoadedKeys, WeightLoader
from arrowquant_dist.loader.memory import identity_of
from arrowquant_dist.loader.slots import Slots
from arrowquant_dist.machine import give_back_freed_memory
from arrowquant_dist.modules.linear import check_activations
from arrowquant_dist.modules.replace import can_be_packed, packed_module, replace_modules
from arrowquant_dist.modules.weight import QuantWeight, is_packable
from arrowquant_dist.tensor import QuantizedTensor


def load_codes_into(
    module: torch.nn.Module,
    loader: WeightLoader,
    *,
    strict: bool = True,
    activations: Activations | None = None,
) -> LoadedKeys:
    """Fills `module` as `loader.load_into(module)` does, but keeps codes: each `Linear` and `Embedding` within the
    module whose weight is quantized in the dataset becomes a QuantLinear or QuantEmbedding. If the module is on the
    meta device, no memory is ever taken for the decoded values of those weights.

    Everything else is decoded: layers stored in 16 bits or unchanged, layers whose row blocks have several types, and
    weights of other modules (including subclasses and modules with hooks, whose forward may differ). Tied weights share
    one set of codes.

    module: the model to fill. loader: an open WeightLoader. strict: whether the names of module and dataset have to be
    the same. activations: "int8" to multiply whole numbers, as in QuantLinear. Raises what load_into raises, and
    InvalidConfig where the module itself is such a layer; after an error the module is as before, except for what
    load_into had already filled.
    """
    if not isinstance(loader, WeightLoader):
        raise InvalidConfig(
            f"loader has to be a WeightLoader, not {shown(loader)}; open the dataset with WeightLoader(uri)"
        )
    check_bool("strict", strict)
    check_activations(activations)
    slots = Slots(module)
    layers = {name: loader.layer(name) for name in loader.keys()}  # noqa: SIM118
    loaded = slots.compare(layers, strict=strict)
    packable = [*_packable(module, slots, layers)]
    if any(owner is module for found in packable for owner in found.owners):
        message = f"a {type(module).__name__} by itself cannot be replaced; pass the model that contains it"
        raise InvalidConfig(message)
    with _without_weights(packable):
        loader.load_into(module, strict=False)
        names = [found.name for found in packable]
        codes = loader.as_codes().stream(names) if names else ()
        weights = [_weight(found, each, loader) for found, (_, each) in zip(packable, codes, strict=True)]
    replace_modules(
        module,
        {
            owner: packed_module(owner, weight, activations)
            for found, weight in zip(packable, weights, strict=True)
            for owner in found.owners
        },
    )
    give_back_freed_memory()
    return loaded


@dataclass(frozen=True, slots=True, eq=False)
class _Packable:
    """A layer of the dataset, the tensor that it belongs in, and the modules that have this tensor as weight."""

    name: str
    tensor: torch.Tensor
    owners: tuple[torch.nn.Module, ...]


def _packable(
    module: torch.nn.Module, slots: Slots, layers: Mapping[str, StoredLayer]
) -> Iterator[_Packable]:
    """Yields weights that can be codes wherever they are used. A tensor that is also used in another way stays a
    tensor. So does one with two names that are two layers of the dataset: `load_into` checks whether these agree."""
    keys: dict[object, list[str]] = {}
    for key, tensor in slots.tensors.items():
        keys.setdefault(identity_of(tensor), []).append(key)
    owners = {
        f"{path}.weight".removeprefix("."): owner
        for path, owner in module.named_modules(remove_duplicate=False)
    }
    for same in keys.values():
        found = {layers[key].name: layers[key] for key in same if key in layers}
        if len(found) != 1 or not all(key in owners and can_be_packed(owners[key]) for key in same):
            continue
        (layer,) = found.values()
        if is_packable(layer.quant_type, layer.shape, layer.row_dims):
            modules = dict.fromkeys(owners[key] for key in same)
            yield _Packable(layer.name, slots.tensors[same[0]], tuple(modules))


@contextmanager
def _without_weights(packable: list[_Packable]) -> Iterator[None]:
    """Removes the weights from their modules, and puts them back if the body fails."""
    for found in packable:
        for owner in found.owners:
            del owner.weight
    try:
        yield
    except BaseException:
        for found in packable:
            for owner in found.owners:
                owner.weight = found.tensor
        raise


def _weight(found: _Packable, codes: QuantizedTensor, loader: WeightLoader) -> QuantWeight:
    """Returns the layer's codes as a weight with the dtype and on the device of the tensor."""
    if found.tensor.is_meta:
        return QuantWeight.of(codes, getattr(torch, loader.decoded_dtype(found.name)))
    return QuantWeight.of(codes, found.tensor.dtype).to(found.tensor.device)
