"""Checks that a dataset's layers agree where names of a module share memory and the dataset has a layer for each.

Otherwise both names would silently get the values that were filled last, such as an embedding those of an lm_head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.errors import ModelMismatch, shortened
from arrowquant_dist.loader.memory import byte_range, identity_of, shared_memory
from arrowquant_dist.loader.slots import Slots

if TYPE_CHECKING:
    import torch

    Differ = Callable[[str, str], bool]  # whether the layers of two keys of one tensor have different values
    Read = Callable[[str], torch.Tensor]  # a key's values, as they would be copied into its tensor

_ALIGNMENT = 16  # bytes: the size of the largest value that a tensor can have


def refuse_differences(slots: Slots, layers: Mapping[str, StoredLayer], differ: Differ, read: Read) -> None:
    """Raises ModelMismatch, naming both keys, if two keys of the module share memory but their layers' values differ.

    layers: the dataset's, by every name. Layers are only read where names that the dataset stores separately share
    memory. In addition to what `read` takes, overlapping views need as much memory as they span.
    """
    keys = [key for key in slots.tensors if key in layers]
    for cluster in shared_memory(slots.tensors, keys):
        if len({identity_of(slots.tensors[key]) for key in cluster}) > 1:
            _refuse_overlap(slots, cluster, read)
            continue
        first = cluster[0]
        seen = {layers[first].name}
        for key in cluster[1:]:
            if layers[key].name not in seen and differ(first, key):
                raise _clash(slots, first, key)
            seen.add(layers[key].name)


def _refuse_overlap(slots: Slots, cluster: Sequence[str], read: Read) -> None:
    """Fills a copy of the shared memory with one layer after another, and checks that all their values are still
    there."""
    import torch

    tensors = [slots.tensors[key] for key in cluster]
    ranges = [byte_range(tensor) for tensor in tensors]
    start = min(first for first, _ in ranges) // _ALIGNMENT * _ALIGNMENT
    memory = torch.zeros(max(stop for _, stop in ranges) - start, dtype=torch.uint8, device=tensors[0].device)
    views = [_view(tensor, memory, start) for tensor in tensors]
    for key, view in zip(cluster, views, strict=True):
        view.copy_(read(key))
    for index, (key, view) in enumerate(zip(cluster, views, strict=True)):
        wrong = _bits(view) != _bits(read(key).to(view.device, view.dtype))
        if wrong.any():
            later = range(index + 1, len(views))
            other = next(j for j in later if _reaches(views[j], view, memory, wrong))
            raise _clash(slots, key, cluster[other])


def _view(tensor: torch.Tensor, memory: torch.Tensor, start: int) -> torch.Tensor:
    """Returns the view of `memory` that `tensor` is of its own. `memory` stands for the addresses from `start` on."""
    import torch

    offset = (tensor.data_ptr() - start) // tensor.element_size()
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(memory.untyped_storage(), offset, tuple(tensor.shape), tensor.stride())


def _reaches(other: torch.Tensor, view: torch.Tensor, memory: torch.Tensor, wrong: torch.Tensor) -> bool:
    """Returns whether `other` covers any of the wrong bytes of `view`. Overwrites their memory."""
    import torch

    memory.zero_()
    other.copy_(torch.full_like(other, 1))
    return bool((_bits(view)[wrong] != 0).any())


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the values' bytes, uint8 [nbytes], in which NaN equals itself and zero differs from its negative."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _clash(slots: Slots, first: str, second: str) -> ModelMismatch:
    message = (
        f"keeps {shortened(first)!r} and {shortened(second)!r} in the same memory, but the dataset has different "
        "values for them; give the module a tensor for each (untie them), or load a dataset in which they are equal"
    )
    return slots.mismatch(message)
