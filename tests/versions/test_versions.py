"""Targets of older releases are read correctly; those of a newer one are refused in one sentence.

The targets were made from one source, and each is named after what was new in its release. report-1 has commits of
version 2. report-2 has commits of version 3. plan-2 has these too, and a plan of version 2; the others have plans of
version 1. Manifest and index have version 1 in all of them. They must never be made again.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from arrowquant_dist import WeightLoader
from arrowquant_dist.cli import app
from arrowquant_dist.errors import ArrowQuantError, InvalidCheckpoint
from arrowquant_dist.plan import plan_from_table
from arrowquant_dist.report.render import load_report
from arrowquant_dist.target.index import read_index
from arrowquant_dist.target.layout import PLAN_PATH
from arrowquant_dist.target.manifest import Manifest
from arrowquant_dist.target.plan_file import read_plan_file
from arrowquant_dist.verify import verify

TARGETS = [Path(__file__).parent / name for name in ("report-1", "report-2", "plan-2")]
LAYERS = {
    "embed.weight": (40, 24),
    "layers.0.proj.weight": (24, 72),
    "norm.weight": (24,),
    "steps": (1,),
}


def source() -> dict[str, np.ndarray]:
    """What the targets were made of."""
    rng = np.random.default_rng(5)
    return {
        "embed.weight": rng.standard_normal((40, 24)).astype("f4"),
        "layers.0.proj.weight": rng.standard_normal((24, 72)).astype("f4"),
        "norm.weight": np.ones(24, "f4"),
        "steps": np.array([3], "i8"),
    }


@pytest.fixture(params=TARGETS, ids=lambda path: path.name)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / "target"))


def test_a_dataset_of_an_older_release_is_sound(target: Path) -> None:
    report = verify(str(target))
    assert report.problems == ()
    assert (report.layers, report.rows) == (4, 4)


def test_its_weights_are_those_of_the_source(target: Path) -> None:
    with WeightLoader(str(target)) as loader:
        found = {name: tensor.numpy() for name, tensor in loader}
    assert {name: array.shape for name, array in found.items()} == LAYERS
    for name, array in source().items():
        error = np.abs(found[name].astype("f8") - array).max()
        assert error <= {"embed.weight": 1e-3, "layers.0.proj.weight": 0.5}.get(name, 0.0)


def test_its_plan_says_what_was_planned(target: Path) -> None:
    plan = plan_from_table(read_plan_file((target / PLAN_PATH).read_bytes(), PLAN_PATH))
    assert {block.layer.name: block.shape for block in plan.blocks} == LAYERS
    assert plan.fingerprint == json.loads((target / "manifest.json").read_text())["fingerprint"]


def test_its_report_is_shown(target: Path) -> None:
    report = load_report(str(target))
    assert report.totals.layers == 4
    assert report.timeline is None
    shown = CliRunner().invoke(app, ["report", str(target)])
    assert shown.exit_code == 0
    assert "4: 1 quantized" in shown.stdout
    html = target / "again.html"
    assert CliRunner().invoke(app, ["report", str(target), "--html", str(html)]).exit_code == 0
    assert "</html>" in html.read_text()
    assert "made the dataset did not record it" in html.read_text()


def test_a_report_of_version_1_does_not_make_up_who_did_the_work() -> None:
    assert load_report(str(TARGETS[0])).work is None
    assert load_report(str(TARGETS[1])).work is not None


def _json(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return edit


def newer_index(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, b"arrowquant.index_version": b"2"}), path
    )


def newer_plan(path: Path) -> None:
    table = pa.ipc.open_file(io.BytesIO(path.read_bytes())).read_all()
    table = table.replace_schema_metadata({**table.schema.metadata, b"arrowquant.plan_version": b"99"})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


READERS: list[tuple[str, Callable[[Path], None], Callable[[Path], object]]] = [
    (
        "manifest.json",
        _json(lambda values: values.update(manifest_version=3)),
        lambda path: Manifest.from_bytes(path.read_bytes(), "manifest.json"),
    ),
    (
        "manifest.json",
        _json(lambda values: values.update(schema_version="3")),
        lambda path: Manifest.from_bytes(path.read_bytes(), "manifest.json"),
    ),
    (
        "report/report.json",
        _json(lambda values: values.update(report_version=3)),
        lambda path: load_report(str(path.parents[1])),
    ),
    ("index.parquet", newer_index, lambda path: read_index(path.read_bytes())),
    (PLAN_PATH, newer_plan, lambda path: plan_from_table(read_plan_file(path.read_bytes(), PLAN_PATH))),
]


@pytest.mark.parametrize(("path", "change", "read"), READERS)
def test_what_a_newer_release_wrote_is_refused_in_one_sentence(
    target: Path, path: str, change: Callable[[Path], None], read: Callable[[Path], object]
) -> None:
    change(target / path)
    with pytest.raises(ArrowQuantError, match=r"newer.*update|update arrowquant-dist") as raised:
        read(target / path)
    assert len(str(raised.value)) < 300
    assert isinstance(raised.value, InvalidCheckpoint)
