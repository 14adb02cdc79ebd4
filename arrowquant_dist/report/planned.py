"""A plan as the tables that `--dry-run` prints before anything runs."""

from __future__ import annotations

from collections import Counter

from arrowquant_dist.errors import counted
from arrowquant_dist.plan import AlikeLayers, PlanSummary, ShardsThere, alike_layers
from arrowquant_dist.report import text
from arrowquant_dist.report.text import LayerName
from arrowquant_dist.report.view import Table


def plan_tables(summary: PlanSummary) -> tuple[Table, ...]:
    """Tables of the totals, of the layers with the rules that decide how they are stored, of the quantization types,
    and of the layers that keep the codes of the source. Layers whose names differ only in block numbers share a row."""
    every = (_totals(summary), _layers(summary), _types(summary), _codes(summary))
    return tuple(table for table in every if table.rows)


def _totals(summary: PlanSummary) -> Table:
    kept = len(summary.kept)
    dtypes = ", ".join(f"{dtype} ({layers})" for dtype, layers in summary.source_dtypes.items())
    expected = f"{text.nbytes(summary.expected_nbytes)} before compression ({summary.compression})"
    rows = [
        ("source", summary.source),
        ("format", f"{summary.format}: {dtypes}"),
        ("layers", f"{summary.layers}: {summary.quantized_layers} quantized, {kept} kept"),
        ("params", text.params(summary.params)),
        ("size", f"{text.nbytes(summary.source_nbytes)} → {expected}"),
    ]
    if summary.stored_nbytes is not None:
        bits = text.bits(summary.stored_nbytes, summary.params) if summary.params else text.MISSING
        rows.append(("stored", f"about {text.nbytes(summary.stored_nbytes)}, {bits} a weight"))
    rows.append(("shards", f"{summary.shards}, of {counted(summary.row_blocks, 'row block')}"))
    if summary.there is not None:
        rows.append(("target", _there(summary.there, summary.shards)))
    rows += [
        ("memory", f"at most {text.nbytes(summary.worker_memory_nbytes)} a worker"),
        ("fingerprint", summary.fingerprint),
    ]
    return Table("Plan", ("", ""), "ll", tuple(rows))


def _there(there: ShardsThere, shards: int) -> str:
    if there.state == "empty":
        return "nothing is there yet"
    if there.state == "replaced":
        return "existing files will be replaced (--overwrite)"
    done = f"{there.done} of {counted(shards, 'shard')} done"
    return f"finished, {done}" if there.state == "finished" else done


def _layers(summary: PlanSummary) -> Table:
    rows = tuple(_alike_row(alike) for alike in alike_layers(summary.planned))
    headers = ("", "layers", "stored as", "by", "source", "stored")
    return Table("Layers", headers, "rlllrr", rows, drop=("source", "by"))


def _alike_row(alike: AlikeLayers) -> tuple[str, ...]:
    stored = alike.stored_nbytes
    return (
        f"{len(alike.layers)} ×",
        LayerName(alike.pattern),
        alike.way.replace(" ", text.NO_BREAK),
        alike.rule,
        text.nbytes(sum(layer.source_nbytes for layer in alike.layers)),
        text.nbytes(alike.expected_nbytes if stored is None else stored),
    )


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
    headers = ("type", "layers", "params", "source", "uncompressed")
    return Table("Stored as", headers, "lrrrr", rows, drop=("params", "source"))


def _codes(summary: PlanSummary) -> Table:
    rows = tuple((label, str(layers)) for label, layers in Counter(summary.kept_codes.values()).most_common())
    return Table("Codes of the source, kept as they are", ("codes", "layers"), "lr", rows)
