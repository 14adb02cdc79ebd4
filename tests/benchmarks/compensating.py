"""gptq of one layer against GPTQ in plain torch, like the paper's code: act-order, static groups, blocks of 128.

Ours runs on one thread, as in a worker; torch uses as many threads as the machine has CPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.tensor import quantize_layer
from tests.benchmarks.table import Row, Table, ratio_of

_BLOCK = _GROUP = 128
_MOST = 15  # the largest code of 4 bits
_DAMP = 0.01


def tables(sides: tuple[int, ...], runs: int) -> Iterator[Table]:
    """sides: sides of the square layers. runs: number of rounds, of which the best counts."""
    title = f"gptq, int4 g{_GROUP}, a layer's seconds, torch with {torch.get_num_threads()} threads"
    yield Table(title, tuple(_row(side, runs) for side in sides))


def _row(side: int, runs: int) -> Row:
    made = torch.Generator().manual_seed(0)
    inputs = torch.randn(side, side, generator=made) * torch.logspace(0, -1, side)
    hessian = inputs.T @ inputs / side
    weight = torch.randn(side, side, generator=made) / side**0.5
    spec = QuantSpec("int4", per_channel=False, group_size=_GROUP, symmetric=False, method="gptq")
    values, parts = weight.numpy().reshape(-1).view(np.uint8), {"hessian": hessian.numpy()}

    def ours() -> np.ndarray:
        return (
            quantize_layer(values, tuple(weight.shape), "float32", spec, parts).dequantize("float32").numpy()
        )

    def theirs() -> np.ndarray:
        return plain_gptq(weight, hessian).numpy()

    found = {ours: _best(ours, runs), theirs: _best(theirs, runs)}
    for quantized in found:
        error = torch.from_numpy(quantized()) - weight
        print(
            f"{side}×{side} {quantized.__name__}: output error {float(((error @ hessian) * error).sum()):.4g}"
        )
    return Row(f"{side}×{side}", 1 / found[ours], "layers/s", "plain torch", 1 / found[theirs], ratio_of(1.5))


def plain_gptq(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """The decoded weights that GPTQ gives."""
    rest, hessian, columns = weight.clone(), hessian.clone(), weight.shape[1]
    groups = [_scale(rest[:, first : first + _GROUP]) for first in range(0, columns, _GROUP)]
    order = torch.argsort(torch.diag(hessian), descending=True)
    rest, hessian = rest[:, order], hessian[order][:, order]
    hessian.diagonal().add_(_DAMP * hessian.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    decoded = torch.empty_like(rest)
    for first in range(0, columns, _BLOCK):
        last = min(first + _BLOCK, columns)
        block, own = rest[:, first:last].clone(), upper[first:last, first:last]
        errors = torch.empty_like(block)
        for i in range(last - first):
            scale, zero = groups[int(order[first + i]) // _GROUP]
            code = torch.clamp(torch.round(block[:, i] / scale) + zero, 0, _MOST)
            decoded[:, first + i] = (code - zero) * scale
            errors[:, i] = (block[:, i] - decoded[:, first + i]) / own[i, i]
            block[:, i:] -= errors[:, i : i + 1] @ own[i : i + 1, i:]
        rest[:, last:] -= errors @ upper[first:last, last:]
    return decoded[:, torch.argsort(order)]


def _scale(group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
    scale = (high - low) / _MOST
    return scale, torch.round(-low / scale)


def _best(run: Callable[[], object], runs: int) -> float:
    run()
    found = []
    for _ in range(runs):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found)
