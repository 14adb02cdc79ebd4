"""Memory that a stream lends: a tensor uses it until the next tensor is requested, then another tensor does."""

from __future__ import annotations

import mmap
import threading
import weakref
from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_dist.arena import fresh, mapped
from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.dataset.prefetch import Budget
from arrowquant_dist.errors import InvalidConfig, shortened
from arrowquant_dist.loader.spans import Spans

if TYPE_CHECKING:
    import torch

_PAGE_NBYTES = mmap.PAGESIZE
_LEAST_PIECE_NBYTES = 64 << 10  # smaller pieces come from the allocator's heap, which reuses them by itself


class Lender:
    """Lends pieces of one range of addresses, always the lowest free ones, so that the same pages are used repeatedly.

    A piece is free again once nothing refers to its memory, neither a tensor, nor a view of one, nor a numpy array:
    values that somebody still holds are never overwritten. Where no free addresses are left, because views of earlier
    tensors are kept, fresh memory is used. Lent pieces, returned pieces whose pages are resident, and everything else
    that `budget` counts stay within its limit together, except for tensors that the caller holds and a full budget does
    not count: free pages go back to the system first. Thread-safe.

    nbytes: size of the address range, which takes no memory before it is used. Raises InvalidConfig where the system
    refuses to reserve it.
    """

    def __init__(self, nbytes: int, budget: Budget) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._returned: deque[range] = deque()  # appended to by any thread, without the lock
        self._addresses = _addresses(_paged(nbytes))
        everything = range(len(self._addresses))
        self._free, self._cold = Spans(everything), Spans(everything)

    def take(self, nbytes: int) -> np.ndarray:
        """Returns uint8 [nbytes], uninitialised; aligned to a page if it is lent."""
        if nbytes < _LEAST_PIECE_NBYTES:
            return fresh(nbytes)
        with self._lock:
            while self._returned:
                self._free.add(self._returned.popleft())
            found = self._free.first(_paged(nbytes))
            if found is not None:
                self._free.remove(found)
                self._cold.remove(found)
            self._trim()
        if found is None:
            return fresh(nbytes)
        # An array directly over a buffer: views keep this array alive. Were it a view of another array, numpy would
        # make them refer to that one instead.
        piece = np.frombuffer(memoryview(self._addresses)[found.start : found.start + nbytes], np.uint8)
        weakref.finalize(piece, self._returned.append, found).atexit = False
        return piece

    @property
    def resident_nbytes(self) -> int:
        """Bytes of physical memory that pages of the address range may occupy, lent or not."""
        with self._lock:
            return len(self._addresses) - self._cold.nbytes

    def _trim(self) -> None:
        """Returns free pages to the system, the highest first, as far as the budget has no room for them."""
        warm = self._free.without(self._cold)
        excess = self._budget.used + sum(map(len, warm)) - self._budget.limit_nbytes
        for run in reversed(warm):
            if excess <= 0:
                return
            given = range(max(run.start, run.stop - _paged(excess)), run.stop)
            self._addresses.madvise(mmap.MADV_DONTNEED, given.start, len(given))
            self._cold.add(given)
            excess -= len(given)


class Lent:
    """The memory of one borrowed stream: each tensor keeps its piece until it is taken back."""

    def __init__(self, lender: Lender) -> None:
        self._lender = lender

    def take(self, nbytes: int) -> np.ndarray:
        return self._lender.take(nbytes)

    def give(self, value: Any) -> Any:
        """Returns the tensor as one that is not a view: a view's base would keep the memory when the view drops it."""
        return value.data

    def take_back(self, name: str, value: Any) -> None:
        """Ends a tensor's time: it drops its memory, and any later use of it raises an InvalidConfig that names the
        layer. Views of it are other tensors and keep their memory."""
        import torch

        with torch.inference_mode(value.is_inference()), torch.no_grad():
            value.set_()
        value.__dict__["layer"] = name
        value.__class__ = _given_back_type()


def _over(layer: str | None) -> InvalidConfig:
    message = (
        "the tensor was borrowed from a stream that has gone on since; use it before you ask for the next one, keep "
        "tensor.clone(), or leave out .borrowed()"
    )
    return InvalidConfig(message, layer=layer)


@cache
def _given_back_type() -> type[torch.Tensor]:
    import torch

    class GivenBack(torch.Tensor):
        """A borrowed tensor whose time is over."""

        @classmethod
        def __torch_function__(cls, func: object, types: object, args: Any = (), kwargs: Any = None) -> Any:
            values = [*args, *(kwargs or {}).values()]
            every = (
                one for value in values for one in (value if isinstance(value, (list, tuple)) else [value])
            )
            raise _over(next((one.__dict__["layer"] for one in every if type(one) is cls), None))

        def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
            return f"<borrowed tensor of {shortened(self.__dict__['layer'])!r}, given back>"

    return GivenBack


def _paged(nbytes: int) -> int:
    return -(-nbytes // _PAGE_NBYTES) * _PAGE_NBYTES


def _addresses(nbytes: int) -> mmap.mmap:
    try:
        return mapped(nbytes)
    except (OSError, OverflowError) as error:
        message = f"the system refuses {rounded_size(nbytes)} of addresses for borrowed tensors; lower memory_budget"
        raise InvalidConfig(message) from error
