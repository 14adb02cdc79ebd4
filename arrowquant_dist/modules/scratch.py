"""Memory for what is needed within one product, which the next one uses again.

A tile of decoded values is a few MB. In memory of its own each time, most of decoding was the kernel's zeroing of fresh
pages: 4096² values of 4 bits took 27 ms, and take 6 so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from arrowquant_dist.arena import whole_pages

# As many threads as are in the midst of a product have a piece each, and so many pieces wait for the next. A piece that
# finds no place here is the system's again. Taking and giving are single steps of a deque, so no lock is needed.
_waiting: deque[np.ndarray] = deque(maxlen=4)


@contextmanager
def borrowed(nbytes: int, device: torch.device) -> Iterator[torch.Tensor]:
    """uint8 [nbytes], uninitialised, for as long as the context lasts. On the CPU it is used again by the next."""
    if device.type != "cpu":
        yield torch.empty(nbytes, dtype=torch.uint8, device=device)
        return
    try:
        piece = _waiting.pop()
    except IndexError:
        piece = whole_pages(nbytes)
    if piece.size < nbytes:
        del piece  # let go of it first
        piece = whole_pages(nbytes)
    try:
        yield torch.from_numpy(piece[:nbytes])
    finally:
        _waiting.append(piece)
