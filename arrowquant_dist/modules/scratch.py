"""Scratch memory for one product, which the next product reuses.

A tile of decoded values is a few MB. When each tile had new memory, most of the decoding time was the kernel zeroing
fresh pages: 4096² values of 4 bits took 27 ms, and take 6 ms with reuse.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from arrowquant_dist.arena import whole_pages

# Each thread within a product holds a piece of its own; up to this many pieces wait here for the next product, and any
# further piece goes back to the system. Appending and popping are atomic for a deque, so no lock is needed.
_waiting: deque[np.ndarray] = deque(maxlen=4)


@contextmanager
def borrowed(nbytes: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Lends uint8 [nbytes], uninitialised, for as long as the context lasts. On the CPU the memory is reused."""
    if device.type != "cpu":
        yield torch.empty(nbytes, dtype=torch.uint8, device=device)
        return
    try:
        piece = _waiting.pop()
    except IndexError:
        piece = whole_pages(nbytes)
    if piece.size < nbytes:
        del piece  # free it before a larger one is allocated
        piece = whole_pages(nbytes)
    try:
        yield torch.from_numpy(piece[:nbytes])
    finally:
        _waiting.append(piece)
