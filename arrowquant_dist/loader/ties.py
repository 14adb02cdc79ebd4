"""Names of a module that share memory, and a dataset that has a layer for each of them: they have to agree.

Whatever was filled last would else be what both names have: an lm_head's values in an embedding, and no word of it.
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

_ALIGNMENT = 16  # bytes: the largest value that a tensor has


def refuse_differences(slots: Slots, layers: Mapping[str, StoredLayer], differ: Differ, read: Read) -> None:
    """ModelMismatch, naming both, where two keys of the module share memory and their layers have other values there.

    layers: by every name of the dataset. Layers are read where names that the dataset keeps apart share memory, and
    nowhere else. Beside what `read` takes, views that overlap take as much memory as they span.
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
    """Fills a copy of the memory that they share, one after the other, and looks whether all are there afterwards."""
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
    """What `tensor` is in its own memory, in `memory`, which stands for addresses from `start` on."""
    import torch

    offset = (tensor.data_ptr() - start) // tensor.element_size()
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(memory.untyped_storage(), offset, tuple(tensor.shape), tensor.stride())


def _reaches(other: torch.Tensor, view: torch.Tensor, memory: torch.Tensor, wrong: torch.Tensor) -> bool:
    """Whether `other` covers any of the bytes of `view` that are wrong. Their memory is no longer needed."""
    import torch

    memory.zero_()
    other.copy_(torch.full_like(other, 1))
    return bool((_bits(view)[wrong] != 0).any())


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """uint8 [nbytes]: NaN equals itself, and zero not its negative."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _clash(slots: Slots, first: str, second: str) -> ModelMismatch:
    message = (
        f"keeps {shortened(first)!r} and {shortened(second)!r} in the same memory, and the dataset has other values "
        "for each; give the module a tensor for each of them (untie them), or load a dataset in which they are equal"
    )
    return slots.mismatch(message)
