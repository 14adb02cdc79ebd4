"""How many threads torch computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from arrowquant_dist.machine import usable_cpus


@contextmanager
def bounded_threads() -> Iterator[None]:
    """No more than this process may have CPUs."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, usable_cpus()))
    try:
        yield
    finally:
        torch.set_num_threads(before)
