"""Threads that call one layer at the same time."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch


def called_at_once(
    layer: torch.nn.Module, batches: Sequence[torch.Tensor], calls: int = 1
) -> list[torch.Tensor]:
    """What the layer makes of each batch, in a thread of its own, the last of so many times."""
    found: dict[int, torch.Tensor] = {}
    start = threading.Barrier(len(batches))

    def call(index: int) -> None:
        start.wait()
        for _ in range(calls):
            found[index] = layer(batches[index])

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[index] for index in range(len(batches))]
