"""Whose memory a tensor has, and which of a module share it: told by addresses, shapes and strides, on the meta device
by identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def has_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor's values are at an address of its own: not on meta, not sparse, not a wrapper of others, not
    freed."""
    import torch

    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_nested:
        return False
    try:
        held = tensor.untyped_storage().nbytes()
        _, stop = _extent(tensor)
        return tensor.data_ptr() != 0 and held >= stop
    except (RuntimeError, NotImplementedError, ValueError):  # wrappers, and what is lazy, have none
        return False


def identity_of(tensor: torch.Tensor) -> object:
    """Equal for tensors that are one: the same object, or the same values in the same memory."""
    if not has_memory(tensor):
        return id(tensor)
    layout = (tuple(tensor.shape), tensor.stride(), tensor.dtype)
    return tensor.device, tensor.data_ptr(), layout


def storage_of(tensor: torch.Tensor) -> object:
    """Equal for tensors that are views of one memory."""
    return (tensor.device, tensor.untyped_storage().data_ptr()) if has_memory(tensor) else (None, id(tensor))


def repeats_itself(tensor: torch.Tensor) -> bool:
    """Whether several of its values share one place, as those of an expanded tensor or of windows that overlap.

    Also True where dimensions interleave so that it cannot be told from one stride after another, as by sizes 3 and 2
    and strides 2 and 3, which nothing but as_strided makes.
    """
    if not has_memory(tensor) or not tensor.numel():
        return False
    reach = 0  # from the first value to the last one of the dimensions with smaller strides
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def shared_memory(tensors: Mapping[str, torch.Tensor], keys: Iterable[str]) -> list[list[str]]:
    """Those of `keys` whose tensors are one or may overlap, in their order, two or more at a time.

    Ranges of bytes are compared, so views that interleave, as columns of one matrix do, count as well.
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
    """Addresses of its first byte and behind its last one. The tensor has memory."""
    first, stop = _extent(tensor)
    base = tensor.untyped_storage().data_ptr()
    return base + first, base + stop


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte and the one behind the last, within the storage."""
    itemsize = tensor.element_size()
    first = int(tensor.storage_offset()) * itemsize
    if not tensor.numel():
        return first, first
    last = sum((int(size) - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * itemsize


def decodable_bytes(tensor: torch.Tensor, dtype: str) -> np.ndarray | None:
    """uint8 [nbytes], the tensor's own memory, where values of `dtype` can be decoded straight into it: a plain,
    contiguous tensor of that dtype in this machine's memory (a pinned one too). None for any other."""
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
    """Tells autograd that the values are others now, as it knows of each change by torch itself."""
    import torch

    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)
