"""Quantizers on one bfloat16 matrix in memory, with one thread each, by the CPU time of that thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from arrowquant_dist import QuantizationConfig, quantize_tensor
from arrowquant_dist.models.threads import threads
from tests.benchmarks.half_quadratic import solvers
from tests.benchmarks.kernels import grouped
from tests.benchmarks.overview.figures import Comparison, Measured
from tests.benchmarks.peers import quantizers
from tests.benchmarks.source import bfloat16_bits
from tests.benchmarks.table import NOT_INSTALLED
from tests.benchmarks.timing import all_seconds

PART = "quantize in memory, one thread"
_CONFIGS = {
    8: ("int8 a row, rtn", QuantizationConfig("int8")),
    4: ("int4 g128, mse", grouped(4, symmetric=False)),
    2: ("int2 g128, mse", grouped(2, symmetric=False)),
}


def comparisons(side: int, runs: int) -> Iterator[Comparison]:
    """side: side of the square matrix. runs: number of rounds."""
    with threads(1):
        bits = bfloat16_bits(np.random.default_rng(0), side * side)
        weight = torch.from_numpy(bits).view(torch.bfloat16).reshape(side, side)
        for bits_each, (name, config) in _CONFIGS.items():
            yield from _against_peers(weight, name, config, bits_each, runs)


def _against_peers(
    weight: torch.Tensor, name: str, config: QuantizationConfig, bits: int, runs: int
) -> Iterator[Comparison]:
    peers: dict[str, Callable[[], object] | None] = {
        peer.name: None if peer.run is None else partial(peer.run, weight) for peer in quantizers(bits)
    }
    if bits < 8:
        peers |= solvers(weight, bits)
    there = {peer: call for peer, call in peers.items() if call is not None}
    seconds = all_seconds({"ours": partial(quantize_tensor, weight, config), **there}, runs, time.thread_time)
    rates = {who: Measured.of(weight.numel() / 1e6, taken) for who, taken in seconds.items()}
    for peer in peers:
        yield Comparison(
            PART,
            name,
            "Mparam/s",
            rates["ours"],
            peer,
            rates.get(peer),
            "" if peer in rates else NOT_INSTALLED,
        )
