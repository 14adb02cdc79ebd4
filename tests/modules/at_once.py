"""Threads that call one layer at the same time."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch


def called_at_once(
    layer: torch.nn.Module, batches: Sequence[torch.Tensor], calls: int = 1
) -> list[torch.Tensor]:
    """The layer's result for each batch, from the last of `calls` calls. Each batch has a thread of its own."""
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
