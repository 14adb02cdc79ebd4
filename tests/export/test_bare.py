"""Rows without a manifest, a V2 file or a folder of V1 files, are exported like a dataset's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from arrowquant_dist import RunConfig
from arrowquant_dist.errors import TargetConflict
from arrowquant_dist.export import ExportOptions, export_dataset
from arrowquant_dist.export.options import ExportFormatName
from tests.format.encoder import Row, kept_row, random_row, write_v1, write_v2

RUN = RunConfig(engine="inline", workers=2)


def v2_file(folder: Path) -> tuple[Path, list[Row]]:
    rng = np.random.default_rng(0)
    rows = [
        random_row(rng, "a.weight", 24, 96, "int4", group_size=32),
        random_row(rng, "b.weight", 16, 50, "int3"),
        random_row(rng, "c.weight", 8, 40, "int8", per_tensor=True),
        kept_row("norm", rng.standard_normal(40).astype(np.float32), "float32"),
    ]
    return write_v2(folder / "rows.parquet", rows), rows


def v1_folder(folder: Path) -> tuple[Path, list[Row]]:
    rng = np.random.default_rng(1)
    rows = [
        kept_row(f"{i}.weight", rng.standard_normal((8 + i, 16)).astype(np.float32), "float32")
        for i in range(4)
    ]
    write_v1(folder / "bare" / "0.parquet", rows[:2])
    write_v1(folder / "bare" / "1.parquet", rows[2:])
    return folder / "bare", rows


def values_of(out: Path, form: str) -> dict[str, bytes]:
    if form == "safetensors":
        return {name: values.tobytes() for name, values in load_file(out / "model.safetensors").items()}
    rows = pq.read_table(out / "weights" / "model.parquet").to_pylist()
    return {row["layer_name"]: row["data"] for row in rows}


@pytest.mark.parametrize("made", [v2_file, v1_folder])
@pytest.mark.parametrize("form", ["safetensors", "v1"])
def test_bare_rows_come_out_decoded_and_the_export_is_finished_then(
    made: Callable[[Path], tuple[Path, list[Row]]], form: ExportFormatName, tmp_path: Path
) -> None:
    dataset, rows = made(tmp_path / "source")
    out = tmp_path / "out"
    first = export_dataset(dataset, out, ExportOptions(form), RUN)
    assert values_of(out, form) == {row.name: row.decoded.astype(np.float32).tobytes() for row in rows}
    again = export_dataset(dataset, out, ExportOptions(form), RUN)
    assert (first.already_finished, again.already_finished) == (False, True)
    weights = "model.safetensors" if form == "safetensors" else "weights/model.parquet"
    assert [file.path for file in first.record.files] == [weights]


@pytest.mark.parametrize("made", [v2_file, v1_folder])
def test_other_bare_rows_in_the_same_place_are_another_export(
    made: Callable[[Path], tuple[Path, list[Row]]], tmp_path: Path
) -> None:
    dataset, _ = made(tmp_path / "source")
    export_dataset(dataset, tmp_path / "out", ExportOptions(), RUN)
    file = next(path for path in (tmp_path / "source").rglob("*.parquet"))
    file.write_bytes(file.read_bytes())  # its date is another, and what is in it might be
    with pytest.raises(TargetConflict, match="dataset: "):
        export_dataset(dataset, tmp_path / "out", ExportOptions(), RUN)
