"""A plan before it runs, as tables: what `--dry-run` prints."""

from __future__ import annotations

from collections import Counter

from arrowquant_dist.errors import counted
from arrowquant_dist.plan import PlanSummary
from arrowquant_dist.report import text
from arrowquant_dist.report.text import LayerName
from arrowquant_dist.report.view import Table


def plan_tables(summary: PlanSummary) -> tuple[Table, ...]:
    """Totals, types, whose codes are the source's own, why layers are kept, and every matrix that stays unquantized by
    its name."""
    every = (_totals(summary), _types(summary), _codes(summary), _reasons(summary), _kept_matrices(summary))
    return tuple(table for table in every if table.rows)


def _totals(summary: PlanSummary) -> Table:
    kept = len(summary.kept)
    dtypes = ", ".join(f"{dtype} ({layers})" for dtype, layers in summary.source_dtypes.items())
    expected = f"{text.nbytes(summary.expected_nbytes)} before compression ({summary.compression})"
    rows = (
        ("source", summary.source),
        ("format", f"{summary.format}: {dtypes}"),
        ("layers", f"{summary.layers}: {summary.quantized_layers} quantized, {kept} kept"),
        ("params", text.params(summary.params)),
        ("size", f"{text.nbytes(summary.source_nbytes)} → {expected}"),
        ("shards", f"{summary.shards}, of {counted(summary.row_blocks, 'row block')}"),
        ("memory", f"at most {text.nbytes(summary.worker_memory_nbytes)} a worker"),
        ("fingerprint", summary.fingerprint),
    )
    return Table("Plan", ("", ""), "ll", rows)


def _types(summary: PlanSummary) -> Table:
    rows = tuple(
        (
            name,
            str(totals.layers),
            text.params(totals.params),
            text.nbytes(totals.source_nbytes),
            text.nbytes(totals.expected_nbytes),
        )
        for name, totals in summary.types.items()
    )
    headers = ("type", "layers", "params", "source", "expected")
    return Table("Stored as", headers, "lrrrr", rows, drop=("params", "source"))


def _codes(summary: PlanSummary) -> Table:
    rows = tuple((label, str(layers)) for label, layers in Counter(summary.kept_codes.values()).most_common())
    return Table("Codes of the source, kept as they are", ("codes", "layers"), "lr", rows)


def _reasons(summary: PlanSummary) -> Table:
    rows = tuple((reason, str(layers)) for reason, layers in summary.kept_reasons.items())
    return Table("Layers that stay unquantized", ("reason", "layers"), "lr", rows)


def _kept_matrices(summary: PlanSummary) -> Table:
    rows = tuple(
        (LayerName(layer.name), text.shape(layer.shape), layer.dtype, layer.quant_type, layer.reason)
        for layer in summary.kept_matrices
    )
    headers = ("layer", "shape", "dtype", "stored as", "reason")
    return Table("Matrices among them", headers, "lllll", rows, drop=("shape", "dtype", "stored as"))
