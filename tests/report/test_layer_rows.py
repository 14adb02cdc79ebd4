"""The figures of all layers, from a run and from its layers.parquet."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.metrics import ErrorSums
from arrowquant_dist.report.layer_rows import load_layer_rows, measured_rows, parsed_rows
from arrowquant_dist.report.layers import layers_parquet
from arrowquant_dist.storage.open import open_store
from tests.report.layer_samples import layer
from tests.report.report_samples import layer_metrics

LAYERS = (
    layer_metrics("lossy", ErrorSums(64, 4.0, 3.0, 1.0, 0.5)),
    layer_metrics("lossless", ErrorSums(64, 4.0, 4.0, 0.0, 0.0)),
    layer_metrics("integers", None),
)


def test_what_is_read_back_is_what_the_run_had() -> None:
    assert parsed_rows(layers_parquet(LAYERS)) == measured_rows(LAYERS)
    lossy, lossless, _ = measured_rows(LAYERS)
    assert (lossless.cosine, lossless.sqnr_db, lossless.noise_db) == (1.0, None, None)
    assert lossy.noise_db == lossy.sqnr_db == pytest.approx(6.02, abs=0.01)


def test_layers_of_a_copied_report_are_found_and_missing_ones_are_none() -> None:
    store = open_store("memory://layer_rows/copied")
    store.write("report/layers.parquet", layers_parquet(LAYERS))
    assert load_layer_rows("memory://layer_rows/copied") == measured_rows(LAYERS)
    assert load_layer_rows("memory://layer_rows/nothing") is None


def _written(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def test_a_damaged_file_is_named() -> None:
    table = pq.read_table(io.BytesIO(layers_parquet(LAYERS)))
    damaged = (
        b"",
        b"PAR1",
        _written(table.drop(["cosine"])),
        _written(table.set_column(9, "params", [["a"] * 3])),
    )
    for content in damaged:
        open_store("memory://layer_rows/damaged").write("report/layers.parquet", content)
        with pytest.raises(InvalidCheckpoint, match=r"damaged/report/layers.parquet: the layers are damaged"):
            load_layer_rows("memory://layer_rows/damaged")


def test_a_row_says_what_shares_a_scale() -> None:
    said = [layer("a", group_size=64), layer("b", group_size=0), layer("c", group_size=0, quant_axis=-1)]
    assert [row.groups for row in said] == ["groups of 64", "rows", "the layer"]
