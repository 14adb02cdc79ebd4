"""An export in figures before it runs: what `--dry-run` prints."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from arrowquant_dist.errors import counted
from arrowquant_dist.export.run import PlannedExport
from arrowquant_dist.report import text
from arrowquant_dist.report.text import LayerName
from arrowquant_dist.report.view import Table


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A planned file. tensors: number of tensors; 0 for a small file."""

    path: str
    tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """A planned export. tensors: {dtype of the format: (number, bytes)}. requantized: names of layers whose codes are
    made anew. small_files: paths of the files beside the weights."""

    format: str
    dataset: str
    mark: str
    layers: int
    nbytes: int
    files: tuple[PlannedFile, ...]
    small_files: tuple[str, ...]
    tensors: dict[str, tuple[int, int]]
    requantized: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def tables(self) -> tuple[Table, ...]:
        totals = (
            ("dataset", self.dataset),
            ("format", self.format),
            ("layers", f"{self.layers}, {len(self.requantized)} of them requantized"),
            ("size", f"{text.nbytes(self.nbytes)} in {counted(len(self.files), 'file')}"),
            ("beside", counted(len(self.small_files), "small file")),
        )
        kinds = tuple((dtype, str(count), text.nbytes(size)) for dtype, (count, size) in self.tensors.items())
        files = tuple((f.path, str(f.tensors), text.nbytes(f.nbytes)) for f in self.files)
        anew = tuple((LayerName(name),) for name in self.requantized)
        every = (
            Table("Export", ("", ""), "ll", totals),
            Table("Tensors", ("dtype", "tensors", "size"), "lrr", kinds),
            Table("Files of weights", ("file", "tensors", "size"), "lrr", files),
            Table("Requantized", ("layer",), "l", anew),
        )
        return tuple(table for table in every if table.rows)


def summarize_export(planned: PlannedExport) -> ExportSummary:
    """Summarizes what the export writes."""
    output, record = planned.output, planned.output.record
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in (tensor for file in output.weights for tensor in file.tensors):
        counts[tensor.dtype] += 1
        sizes[tensor.dtype] += tensor.nbytes
    return ExportSummary(
        format=record.format,
        dataset=record.origin.dataset,
        mark=record.mark,
        layers=len(planned.draft.layers),
        nbytes=sum(file.nbytes for file in output.weights),
        files=tuple(PlannedFile(f.path, sum(1 for _ in f.tensors), f.nbytes) for f in output.weights),
        small_files=tuple(output.small.paths),
        tensors={dtype: (count, sizes[dtype]) for dtype, count in counts.items()},
        requantized=tuple(
            layer.name for layer in planned.draft.layers if layer.spec is not None and layer.spec.is_quantized
        ),
        notes=record.notes,
    )
