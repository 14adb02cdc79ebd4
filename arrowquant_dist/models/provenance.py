"""Finds the rows of layers that a parameter consists of, so that codes can stay codes: scales and packed bytes belong
to rows.

    built = build_model(…)                       # of build.py: a model whose tensors are traced
    runs = row_runs(built.slots[0].traced.node)  # (RowRun("…q_proj.weight", 0, 64), RowRun("…k_proj.weight", 0, 32))

The parameter is those runs one below the other, with unchanged columns, in its own dtype. Renamed layers, q, k and v
joined or split along their rows, and permuted rows (rotary halves) consist of runs. Parameters that do not are decoded:
transposed matrices (GPT-2's Conv1D, some experts), splits along columns, experts stacked to three dimensions, values
that are computed or cast twice, and permutations of more than 64 million values, which are found by applying them to
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch

from arrowquant_dist.models.placements import has_cast
from arrowquant_dist.models.traced import Derived, Node, Origin, evaluated, sources_of

_MOST_TRIED = 1 << 26  # values of 8 bytes each


@dataclass(frozen=True, slots=True)
class RowRun:
    """Rows [start, stop) of the first dimension of a layer. layer: its stored name."""

    layer: str
    start: int
    stop: int


def row_runs(node: Node) -> tuple[RowRun, ...] | None:
    """Returns the runs that a matrix consists of, top to bottom, or None if it does not consist of whole rows."""
    if node.like.dim() < 2:
        return None
    found = _runs(node)
    return None if found is None else _joined(found)


def _runs(node: Node) -> list[RowRun] | None:
    if isinstance(node, Origin):
        return [RowRun(node.name, 0, node.like.shape[0])] if node.like.dim() else None
    match node.name:
        case "contiguous" | "clone" | "detach":
            return _runs(node.inputs[0])
        case "to":
            return None if has_cast(node.inputs[0]) else _runs(node.inputs[0])
        case "cat" | "concat" | "concatenate" if _dim(node) == 0 and _agree(node):
            parts = [_runs(part) for part in node.inputs]
            return None if None in parts else [run for part in parts for run in part or ()]
        case "chunk" | "split" if _dim(node) == 0 and len(node.inputs) == 1:
            return _cut(node)
    return _tried(node)


def _agree(node: Derived) -> bool:
    """Returns whether the parts of a concatenation have its columns and its dtype."""
    parts = [part.like for part in node.inputs]
    return all(part.shape[1:] == node.like.shape[1:] and part.dtype == node.like.dtype for part in parts)


def _cut(node: Derived) -> list[RowRun] | None:
    """Returns the runs of one of the pieces that a matrix is split into along its rows."""
    inner = _runs(node.inputs[0])
    if inner is None or node.number is None:
        return None
    sizes = node.args[1] if len(node.args) > 1 else next(v for k, v in node.kwargs.items() if k != "dim")
    rows = node.inputs[0].like.shape[0]
    if isinstance(sizes, int):
        size = -(-rows // sizes) if node.name == "chunk" else sizes
        start = node.number * size
    else:
        start = sum(sizes[: node.number])
    return _part(inner, start, start + node.like.shape[0])


def _part(runs: list[RowRun], start: int, stop: int) -> list[RowRun]:
    """Returns rows [start, stop) of the matrix that the runs make up."""
    found = []
    ends = [*accumulate(run.stop - run.start for run in runs)]
    for run, end in zip(runs, ends, strict=True):
        begin = end - (run.stop - run.start)
        low, high = max(start, begin), min(stop, end)
        if low < high:
            found.append(RowRun(run.layer, run.start + low - begin, run.start + high - begin))
    return found


def _tried(node: Derived) -> list[RowRun] | None:
    """Finds runs by applying the operations to the positions of the values in their layer, if it is a single one."""
    names = {*sources_of(node)}
    source = _source(node)
    if len(names) != 1 or source is None or source.like.dim() < 2 or source.like.numel() > _MOST_TRIED:
        return None
    columns = source.like[0].numel()
    positions = torch.arange(source.like.numel()).reshape(source.like.shape)
    placed = evaluated(node, {source.name: positions})
    if placed.dtype != torch.int64 or placed.dim() < 2 or placed[0].numel() != columns or not columns:
        return None
    placed = placed.reshape(-1, columns)
    if bool((placed[:, 0] % columns).any()) or not torch.equal(placed, placed[:, :1] + torch.arange(columns)):
        return None
    return [RowRun(source.name, row, row + 1) for row in (placed[:, 0] // columns).tolist()]


def _source(node: Node) -> Origin | None:
    while isinstance(node, Derived):
        if not node.inputs:
            return None
        node = node.inputs[0]
    return node


def _joined(runs: list[RowRun]) -> tuple[RowRun, ...]:
    """Joins runs that follow each other in one layer."""
    found: list[RowRun] = []
    for run in runs:
        if found and found[-1].layer == run.layer and found[-1].stop == run.start:
            found[-1] = RowRun(run.layer, found[-1].start, run.stop)
        else:
            found.append(run)
    return tuple(found)


def _dim(node: Derived) -> int:
    given = node.kwargs.get("dim")
    if given is None:
        place = 1 if node.name.startswith("c") and node.name != "chunk" else 2
        given = node.args[place] if len(node.args) > place else 0
    return int(given) % node.like.dim()
