"""Which memory a tensor uses, and which tensors of a module share it: by addresses, shapes and strides, and on the meta
device by object identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def has_memory(tensor: torch.Tensor) -> bool:
    """Returns whether a tensor's values lie at an address of its own: False on the meta device, and for sparse tensors,
    wrappers of other tensors, and tensors whose memory was freed."""
    import torch

    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_nested:
        return False
    try:
        held = tensor.untyped_storage().nbytes()
        _, stop = _extent(tensor)
        return tensor.data_ptr() != 0 and held >= stop
    except (RuntimeError, NotImplementedError, ValueError):  # wrappers and lazy tensors have no storage
        return False


def identity_of(tensor: torch.Tensor) -> object:
    """Returns a key that is equal for equivalent tensors: the same object, or the same values in the same memory."""
    if not has_memory(tensor):
        return id(tensor)
    layout = (tuple(tensor.shape), tensor.stride(), tensor.dtype)
    return tensor.device, tensor.data_ptr(), layout


def storage_of(tensor: torch.Tensor) -> object:
    """Returns a key that is equal for tensors that are views of one storage."""
    return (tensor.device, tensor.untyped_storage().data_ptr()) if has_memory(tensor) else (None, id(tensor))


def repeats_itself(tensor: torch.Tensor) -> bool:
    """Returns whether several values share one place in memory, as in an expanded tensor or in overlapping windows.

    Also True where dimensions interleave in such a way that checking one stride after another cannot tell, as with
    sizes 3 and 2 and strides 2 and 3, which only as_strided produces.
    """
    if not has_memory(tensor) or not tensor.numel():
        return False
    reach = 0  # distance from the first to the last value along the dimensions with smaller strides
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def shared_memory(tensors: Mapping[str, torch.Tensor], keys: Iterable[str]) -> list[list[str]]:
    """Returns groups of two or more of `keys` whose tensors are the same or may overlap, in the order of `tensors`.

    Byte ranges are compared, so interleaving views, such as columns of one matrix, count as well.
    """
    clusters: list[list[str]] = []
    spans: list[tuple[str, int, int, str]] = []
    same: dict[int, list[str]] = {}
    for key in keys:
        tensor = tensors[key]
        if has_memory(tensor):
            start, stop = byte_range(tensor)
            spans.append((str(tensor.device), start, stop, key))
        else:
            same.setdefault(id(tensor), []).append(key)
    device, end = "", -1
    for where, start, stop, key in sorted(spans):
        if where != device or start >= end:
            clusters.append([])
            device, end = where, stop
        clusters[-1].append(key)
        end = max(end, stop)
    order = {key: index for index, key in enumerate(tensors)}
    found = [sorted(cluster, key=order.__getitem__) for cluster in (*clusters, *same.values())]
    return [cluster for cluster in found if len(cluster) > 1]


def byte_range(tensor: torch.Tensor) -> tuple[int, int]:
    """Returns the address of the first byte and that after the last byte of a tensor that has memory."""
    first, stop = _extent(tensor)
    base = tensor.untyped_storage().data_ptr()
    return base + first, base + stop


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Returns the offsets within the storage of the first byte and of the byte after the last."""
    itemsize = tensor.element_size()
    first = int(tensor.storage_offset()) * itemsize
    if not tensor.numel():
        return first, first
    last = sum((int(size) - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * itemsize


def decodable_bytes(tensor: torch.Tensor, dtype: str) -> np.ndarray | None:
    """Returns the tensor's own memory, uint8 [nbytes], if values of `dtype` can be decoded straight into it: for a
    plain, contiguous tensor of that dtype in this machine's memory, pinned or not. None for any other tensor."""
    import torch

    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    if not plain or tensor.device.type != "cpu" or tensor.dtype != getattr(torch, dtype):
        return None
    if not has_memory(tensor) or not tensor.is_contiguous() or tensor.is_neg():
        return None
    if tensor.data_ptr() % tensor.element_size():
        return None
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def written_past_torch(tensor: torch.Tensor) -> None:
    """Tells autograd that the values have changed, as torch itself does for each change that it makes."""
    import torch

    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)
