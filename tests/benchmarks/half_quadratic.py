"""`mse` against HQQ with optimization, on the same bfloat16 matrix and bits; CPU time of one thread, and both errors.

HQQ keeps the scale of the group's range and looks for the zero point that makes Σ|x - x̂|^0.7 small, by half-quadratic
splitting (Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023). The package `hqq` is
measured if it is installed. Its solver, written out below after the paper with the package's defaults, is always
measured; the two find the same zero points.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version

import numpy as np
import torch

from arrowquant_dist import quantize_tensor
from arrowquant_dist.models.threads import threads
from tests.benchmarks.kernels import grouped
from tests.benchmarks.peers import GROUP, installed
from tests.benchmarks.source import bfloat16_bits
from tests.benchmarks.table import Row, Table, ratio_of
from tests.benchmarks.timing import all_seconds

_NORM = 0.7
_BETA, _KAPPA = 10.0, 1.01
_ITERATIONS = 20

Decoded = Callable[[], torch.Tensor]  # decodes the quantized values, when it is called


def tables(side: int, runs: int) -> Iterator[Table]:
    """side: side of the square matrix. runs: number of rounds, of which the best counts."""
    with threads(1):
        bits = bfloat16_bits(np.random.default_rng(0), side * side)
        weight = torch.from_numpy(bits).view(torch.bfloat16).reshape(side, side)
        title = f"Data-free, {side}×{side} bfloat16, g{GROUP}, one thread, best of {runs} rounds"
        yield Table(title, tuple(row for bits in (4, 3, 2) for row in _rows(weight, bits, runs)))


def half_quadratic(weight: torch.Tensor, bits: int) -> Decoded:
    """Quantizes by HQQ's solver. weight: [rows, columns], columns a multiple of GROUP."""
    values = weight.float().reshape(-1, GROUP)
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    most = 2**bits - 1
    inverse = torch.where(high - low <= 1e-4, 1.0, most / (high - low)).clamp(max=2e4)
    zero, beta, least = -low * inverse, _BETA, torch.tensor(torch.inf)
    for _ in range(_ITERATIONS):
        codes = torch.round(values * inverse + zero).clamp_(0, most)
        error = values - (codes - zero) / inverse
        size = error.abs()
        shrunk = torch.sign(error) * (size - size.pow(_NORM - 1) / beta).clamp_min_(0)
        zero = (codes - (values - shrunk) * inverse).mean(1, keepdim=True)
        if size.mean() >= least:
            break
        least, beta = size.mean(), beta * _KAPPA
    codes = torch.round(values * inverse + zero).clamp_(0, most).to(torch.uint8)
    return lambda: ((codes - zero) / inverse).reshape(weight.shape)


def solvers(weight: torch.Tensor, bits: int) -> dict[str, Callable[[], Decoded] | None]:
    """HQQ's package (None if it is not installed) and its solver, by name."""
    package = f"hqq {version('hqq')}" if installed("hqq") else "hqq"
    return {
        package: partial(_package, weight, bits) if installed("hqq") else None,
        "HQQ's solver, written out": partial(half_quadratic, weight, bits),
    }


def _rows(weight: torch.Tensor, bits: int, runs: int) -> Iterator[Row]:
    peers = solvers(weight, bits)
    contenders: dict[str, Callable[[], Decoded]] = {"mse": partial(_ours, weight, bits)}
    contenders |= {name: call for name, call in peers.items() if call is not None}
    seconds = all_seconds(contenders, runs, time.thread_time)
    wide = weight.float()
    for name, quantize in contenders.items():
        error = float((quantize()() - wide).square().sum() / wide.square().sum())
        print(f"int{bits} g{GROUP}, {name}: squared error {error:.5g} of the squares")
    rate = {name: weight.numel() / 1e6 / min(taken) for name, taken in seconds.items()}
    target = ratio_of(50) if bits == 4 else None
    for peer in peers:
        name = f"int{bits} g{GROUP} asymmetric mse"
        yield Row(name, rate["mse"], "Mparam/s", peer, rate.get(peer), target)


def _ours(weight: torch.Tensor, bits: int) -> Decoded:
    quantized = quantize_tensor(weight, grouped(bits, symmetric=False))
    return lambda: quantized.dequantize(torch.float32)


def _package(weight: torch.Tensor, bits: int) -> Decoded:
    from hqq.core.quantize import Quantizer

    how = {"group_size": GROUP, "axis": 1, "device": "cpu", "compute_dtype": torch.float32}
    codes, found = Quantizer.quantize(weight, nbits=bits, optimize=True, **how)
    return lambda: Quantizer.dequantize(codes, found | {"compute_dtype": torch.float32}).reshape(weight.shape)
