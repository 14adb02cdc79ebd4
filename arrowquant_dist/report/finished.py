"""The report that `quantize` returns, for use in Python: all figures, those of every layer included."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrowquant_dist.config import Storage
from arrowquant_dist.config.checks import check_options
from arrowquant_dist.displays import Displayed, html_table
from arrowquant_dist.errors import InvalidConfig, MissingDependency, NotFound
from arrowquant_dist.location import Location, location
from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.report import view
from arrowquant_dist.report.evaluated import evaluation_table
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.layer_rows import layers_at, parsed_layers, parsed_rows
from arrowquant_dist.report.load import figures_at
from arrowquant_dist.report.render import manifest_at
from arrowquant_dist.storage.open import open_store

if TYPE_CHECKING:
    import pandas

_TELLING = ("source", "stored as", "params", "size", "compression", "weight cosine")


@dataclass(frozen=True, slots=True, repr=False)
class Report(Displayed, ReportFigures):
    """The report on a quantized checkpoint, which `ArrowQuantizer.quantize` returns and `Report.load` reads back.

    totals: sizes, and the ratios compression_vs_fp16 and compression_vs_source. accuracy: errors of the weights over
    the quantized layers (mean, min, max and std of cosine, precision_loss, mse and sqnr_db); None if no layer is
    quantized. layer_types, quant_types, distribution: the layers by layer type, by quantization type and by cosine.
    worst_layers, kept_layers: the layers with the lowest cosine, and those that are not quantized. timing, work, run,
    timeline: how the run went. source, config, fingerprint, part_compression, notes: what the dataset was made from,
    and how. `to_dict()` returns all of these as plain values, the content of the target's report.json.

    layers: content of the target's layers.parquet; None if that file is gone. evaluations: evaluations of the dataset
    that `evaluate` had written before the report was loaded.

    A notebook shows a report as tables.
    """

    layers: bytes | None = None
    evaluations: tuple[Evaluation, ...] = ()

    @classmethod
    def of(
        cls, figures: ReportFigures, layers: bytes | None, evaluations: tuple[Evaluation, ...] = ()
    ) -> Report:
        """A report with these `figures`, layers and evaluations."""
        values = {field.name: getattr(figures, field.name) for field in fields(ReportFigures)}
        return cls(**values, layers=layers, evaluations=evaluations)

    @classmethod
    def load(cls, target: Location, storage_options: Mapping[str, Any] | None = None) -> Report:
        """Reads the report of the finished dataset at `target`, a folder or URL. storage_options: options of fsspec.

        Raises NotFound if there is no report, and InvalidCheckpoint if one of its files is damaged or is not the one
        that the manifest names.
        """
        uri, storage = (
            location(target, "target"),
            Storage(check_options("storage_options", storage_options or {})),
        )
        store = open_store(uri, storage)
        manifest = manifest_at(store)
        found = figures_at(uri, store, manifest)
        return cls.of(found.report, layers_at(store, manifest), found.evaluations)

    def to_pandas(self) -> pandas.DataFrame:
        """The content of layers.parquet, one row per layer, with the columns layer_name, layer_type, shape,
        quant_type, params, stored_nbytes, cosine, sqnr_db and so on.

        Raises MissingDependency if pandas is not installed, NotFound if layers.parquet was gone when the report was
        read, and InvalidCheckpoint if it is damaged.
        """
        try:
            import pandas  # noqa: F401 - so that it is this error
        except ImportError as error:
            raise MissingDependency(
                "to_pandas() needs pandas, which is not installed: pip install pandas"
            ) from error
        return parsed_layers(self._layers()).to_pandas()

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as one self-contained page to the local file `path`, replacing an existing file. It is the
        page that `arrowquant report --html` makes.

        Raises StorageError if the file cannot be written, InvalidConfig if `path` is a URL, and InvalidCheckpoint if
        layers.parquet is damaged.
        """
        from arrowquant_dist.report.page import report_page, save_page

        place = location(path, "path")
        if "://" in place:
            raise InvalidConfig("path: must be a local file, not a URL")
        layers = parsed_rows(self.layers) if self.layers is not None else None
        save_page(Path(place), report_page(self, self.evaluations, layers))

    def _layers(self) -> bytes:
        if self.layers is None:
            raise NotFound("report/layers.parquet was missing from the target when its report was read")
        return self.layers

    def _summary(self) -> Mapping[str, object]:
        said = {what: value for what, value in view.essentials(self).rows}  # noqa: C416 - pairs, as its type does not say
        return {name.replace(" ", "_"): said[name] for name in _TELLING if name in said}

    def _repr_html_(self) -> str:
        outputs = (evaluation_table(one) for one in self.evaluations)
        tables = (view.essentials(self), *outputs, view.layer_types(self), view.worst_layers(self))
        return "".join(
            html_table(table.title, table.headers, table.rows, table.align) for table in tables if table.rows
        )
