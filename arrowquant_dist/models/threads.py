"""The number of threads that torch computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from arrowquant_dist.machine import usable_cpus


def bounded_threads() -> AbstractContextManager[None]:
    """Uses at most as many threads as CPUs that this process may use."""
    return threads(min(torch.get_num_threads(), usable_cpus()))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Uses `count` threads as long as the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
