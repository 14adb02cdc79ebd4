"""Kernels in memory, one thread against one thread, on the same bfloat16 matrix, by the CPU time of that thread.

Median and best of the rounds are both shown, with the target on each, because they can disagree: torchao's int2 takes
27 ms in a round whose temporaries reuse memory, and some 90 ms in one that gets fresh pages (16,000 to 33,000 page
faults). Ours has hardly any temporaries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median

import numpy as np
import torch

from arrowquant_dist import QuantizationConfig, QuantizedTensor, quantize_tensor
from arrowquant_dist.method_names import MethodName
from arrowquant_dist.models.threads import threads
from tests.benchmarks.peers import GROUP, quantizers
from tests.benchmarks.source import bfloat16_bits
from tests.benchmarks.table import Row, Table, Target, ratio_of
from tests.benchmarks.timing import all_seconds

_UNIT = "Mparam/s"
_SHIFTS = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)


def tables(side: int, runs: int) -> Iterator[Table]:
    """side: side of the square matrix. runs: number of rounds."""
    with threads(1):
        bits = bfloat16_bits(np.random.default_rng(0), side * side)
        weight = torch.from_numpy(bits).view(torch.bfloat16).reshape(side, side)
        title = f"{side}×{side} bfloat16, one thread, {runs} rounds"
        yield Table(f"Quantize {title}", tuple(_quantize_rows(weight, runs)))
        yield Table(f"Dequantize to float32 {title}", tuple(_dequantize_rows(weight, runs)))


def grouped(bits: int, *, symmetric: bool, method: MethodName = "mse") -> QuantizationConfig:
    how = {"per_channel": False, "group_size": GROUP, "symmetric": symmetric, "method": method}
    return QuantizationConfig.from_dict({"quant_type": f"int{bits}", **how})


def _quantize_rows(weight: torch.Tensor, runs: int) -> Iterator[Row]:
    yield from _against_peers(
        weight, runs, 8, {"int8 per channel rtn": QuantizationConfig("int8")}, ratio_of(25)
    )
    for bits in (4, 2):
        ours = {
            f"int{bits} g{GROUP} asymmetric mse": grouped(bits, symmetric=False),
            f"int{bits} g{GROUP} symmetric mse": grouped(bits, symmetric=True),
        }
        yield from _against_peers(weight, runs, bits, ours, ratio_of(2))
        rtn = {f"int{bits} g{GROUP} symmetric rtn": grouped(bits, symmetric=True, method="rtn")}
        yield from _against_peers(weight, runs, bits, rtn, None)


def _against_peers(
    weight: torch.Tensor, runs: int, bits: int, ours: Mapping[str, QuantizationConfig], target: Target | None
) -> Iterator[Row]:
    """target: target against the first peer. If no peer is installed, the rows have only our figures and that
    target."""
    peers = quantizers(bits) if target else quantizers(bits)[:1]
    contenders: dict[str, Callable[[], object]] = {
        name: partial(quantize_tensor, weight, config) for name, config in ours.items()
    }
    contenders |= {peer.name: partial(peer.run, weight) for peer in peers if peer.run}
    seconds = all_seconds(contenders, runs, time.thread_time)
    first = next(iter(ours))
    for peer in peers:
        for name in ours:
            if peer is peers[0]:
                yield from _rows(name, seconds, weight.numel(), name, peer.name, target)
            elif name == first:
                yield from _rows(name, seconds, weight.numel(), name, peer.name)


def _rows(
    title: str,
    seconds: Mapping[str, list[float]],
    count: int,
    ours: str,
    peer: str,
    target: Target | None = None,
) -> Iterator[Row]:
    """Two rows for one comparison, by the median and by the best round."""
    for statistic, pick in (("median", median), ("best", min)):
        rate = {name: count / 1e6 / pick(taken) for name, taken in seconds.items()}
        yield Row(f"{title}, {statistic}", rate[ours], _UNIT, peer, rate.get(peer), target)


def _dequantize_rows(weight: torch.Tensor, runs: int) -> Iterator[Row]:
    yield from _decoded(
        "int8", quantize_tensor(weight, QuantizationConfig("int8")), _torch_int8, _torch_int8_best, runs
    )
    two_bits = quantize_tensor(weight, grouped(2, symmetric=False))
    yield from _decoded(f"int2 g{GROUP} asymmetric", two_bits, _torch_int2, _torch_int2_best, runs)


def _decoded(
    name: str,
    q: QuantizedTensor,
    plain: Callable[[QuantizedTensor], torch.Tensor],
    best: Callable[[QuantizedTensor, torch.Tensor], dict[str, Callable[[], object]]],
    runs: int,
) -> Iterator[Row]:
    """Decoding against torch as one would write it, and against the fastest way to decode into existing memory."""
    expected = q.dequantize(torch.float32)
    assert torch.allclose(plain(q), expected, atol=1e-6)
    out = torch.empty(q.shape, dtype=torch.float32)
    spellings = best(q, out)
    for spelling in spellings.values():
        out.zero_()
        spelling()
        assert torch.allclose(out, expected, atol=1e-6)
    raw = np.empty(q.shape, np.float32).reshape(-1).view(np.uint8)
    arithmetic = "torch's arithmetic"
    named = {f"torch, {name}": call for name, call in spellings.items()}
    seconds = all_seconds(
        {
            "fresh": partial(q.dequantize, torch.float32),
            arithmetic: partial(plain, q),
            "into": partial(q.values_into, raw, "float32"),
            **named,
        },
        runs,
        time.thread_time,
    )
    count = expected.numel()
    yield from _rows(f"{name} → float32", seconds, count, "fresh", arithmetic, ratio_of(3))
    fastest = min(named, key=lambda spelling: min(seconds[spelling]))
    yield from _rows(f"{name} → float32, in place", seconds, count, "into", fastest)


def _torch_int8(q: QuantizedTensor) -> torch.Tensor:
    codes, scales = _int8_parts(q)
    return codes.to(torch.float32) * scales


def _torch_int8_best(q: QuantizedTensor, out: torch.Tensor) -> dict[str, Callable[[], object]]:
    codes, scales = _int8_parts(q)
    return {
        "mul(codes, scales, out=)": lambda: torch.mul(codes, scales, out=out),
        "out.copy_(codes).mul_(scales)": lambda: out.copy_(codes).mul_(scales),
    }


def _int8_parts(q: QuantizedTensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(q.codes).view(torch.int8).reshape(q.shape), torch.from_numpy(q.scales)[:, None]


def _torch_int2(q: QuantizedTensor) -> torch.Tensor:
    packed, scales, zero_points = _int2_parts(q)
    codes = ((packed[:, None] >> _SHIFTS) & 3).reshape(-1, GROUP)
    return ((codes.to(torch.float32) - 2 - zero_points) * scales).reshape(q.shape)


def _torch_int2_best(q: QuantizedTensor, out: torch.Tensor) -> dict[str, Callable[[], object]]:
    packed, scales, zero_points = _int2_parts(q)
    grouped_out, shifted = out.view(-1, GROUP), zero_points + 2
    fours, codes = out.view(-1, 4), torch.empty(packed.numel(), 4, dtype=torch.uint8)
    all_bytes = torch.arange(256, dtype=torch.uint8)[:, None]
    table = ((all_bytes >> _SHIFTS) & 3).to(torch.float32)

    def with_shifts() -> None:
        torch.bitwise_right_shift(packed[:, None], _SHIFTS, out=codes).bitwise_and_(3)
        fours.copy_(codes)
        grouped_out.sub_(shifted).mul_(scales)

    def with_table() -> None:
        torch.index_select(table, 0, packed.to(torch.int32), out=fours)
        grouped_out.sub_(shifted).mul_(scales)

    return {"shifts, out=, sub_, mul_": with_shifts, "table of bytes, out=, sub_, mul_": with_table}


def _int2_parts(q: QuantizedTensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    column = (torch.from_numpy(q.scales)[:, None], torch.from_numpy(q.zero_points)[:, None])
    return torch.from_numpy(q.codes), *column
