"""`inspect`, `verify` and `report` on real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

from arrowquant_dist.cli import app
from arrowquant_dist.format.digests import chunk_digests, row_checksum
from arrowquant_dist.format.parquet.part import PartWriter
from arrowquant_dist.format.row import Blobs, RowHeader, StoredRow
from arrowquant_dist.storage.open import open_store
from tests.checkpoint.quantized_models import save_model
from tests.checkpoint.word_models import Words

GOLDEN = Path(__file__).parents[1] / "report" / "golden_report.json"
HOSTILE = "a\x1b[2J<script>[bold]"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({HOSTILE: np.ones((3, 5), np.float32), "norm.weight": np.ones(4, np.float16)}, path)
    return path


def make_target(folder: Path, **changes: Any) -> Path:
    values = {**json.loads(GOLDEN.read_text()), **changes}
    (folder / "report").mkdir(parents=True)
    (folder / "report" / "report.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return make_target(tmp_path / "int8")


def test_inspect_lists_layers_and_totals(checkpoint: Path) -> None:
    result = run("inspect", checkpoint)
    assert result.exit_code == 0
    assert "a\\x1b[2J<script>[bold]" in result.stdout
    assert "\x1b" not in result.stdout
    lines = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    assert lines["norm.weight"] == ["float16", "4", "4", "8", "B"]
    assert lines["params"] == ["19"]


def test_inspect_as_json_has_a_row_a_layer(checkpoint: Path) -> None:
    values = json.loads(run("inspect", checkpoint, "--json").stdout)
    assert values["totals"] == {"layers": 2, "params": 19, "source_nbytes": 68, "stored_nbytes": None}
    rows = {row["layer_name"]: row for row in values["layers"]}
    assert rows[HOSTILE]["shape"] == [3, 5]
    assert rows["norm.weight"]["dtype"] == "float16"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--filter", "*.weight"), ["b.weight", "norm.weight"]),
        (("--filter", "norm", "--filter", "/^b/"), ["b.weight", "norm.weight"]),
        (("--sort", "name"), ["a", "b.weight", "norm.weight"]),
        (("--sort", "params"), ["a", "norm.weight", "b.weight"]),
        (("--sort", "size", "--limit", "1"), ["a"]),
    ],
)
def test_inspect_lists_the_layers_that_are_asked_for(
    tmp_path: Path, options: tuple[str, ...], names: list[str]
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(
        {"b.weight": np.ones(2, np.float32), "norm.weight": np.ones(3, np.float16), "a": np.ones(9)}, path
    )
    found = json.loads(run("inspect", path, *options, "--json").stdout)
    listed = [row["layer_name"] for row in found["layers"]]
    assert sorted(listed) == sorted(names) if "--sort" not in options else listed == names
    assert found["totals"]["layers"] == 3
    assert f"3, {len(names)} of them listed (" in run("inspect", path, *options).stdout


@pytest.mark.parametrize("options", [("--filter", "nrom"), ("--filter", "/(/"), ("--sort", "age")])
def test_inspect_refuses_what_it_cannot_list_by(checkpoint: Path, options: tuple[str, ...]) -> None:
    result = run("inspect", checkpoint, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {options[0].removeprefix('--')}: ")


def test_inspect_of_nothing_is_bad_input(tmp_path: Path) -> None:
    result = run("inspect", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def make_dataset(folder: Path, told: np.ndarray) -> Path:
    """A V2 file of one int8 layer, 64 codes of 7, whose checksums are those of the codes `told`."""
    data, scales, none = np.full(64, 7, np.uint8), np.ones(8, np.float32), np.empty(0, np.float32)
    digests = chunk_digests(told)
    header = RowHeader(
        layer_name=HOSTILE,
        row_start=0,
        shape=(8, 8),
        layer_shape=(8, 8),
        row_dims=1,
        dtype="float32",
        quant_type="int8",
        quant_axis=0,
        group_size=0,
        num_params=64,
        checksum=row_checksum(digests, scales, none),
    )
    row = StoredRow(header, Blobs(data, scales, none, np.frombuffer(digests, np.uint8)))
    with PartWriter(open_store(str(folder)), "part.parquet", "none") as writer:
        writer.add(row, source_nbytes=256, method="rtn", kept_reason=None, errors=None)
        writer.close()
    return folder / "part.parquet"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return make_dataset(tmp_path, np.full(64, 7, np.uint8))


@pytest.fixture
def corrupt(tmp_path: Path) -> Path:
    return make_dataset(tmp_path, np.full(64, 6, np.uint8))


def test_inspect_of_a_dataset_says_how_layers_are_stored(dataset: Path) -> None:
    row = json.loads(run("inspect", dataset, "--json").stdout)["layers"][0]
    assert (row["quant_type"], row["source_nbytes"]) == ("int8", 256)
    assert row["stored_nbytes"] == 64 + 8 * 4 + 16
    shown = run("inspect", dataset).stdout
    assert "stored as" in shown
    assert "int8" in shown


def test_inspect_of_a_quantized_source_tells_stored_sizes_from_decoded_ones(tmp_path: Path) -> None:
    made = Words.random((64, 128), 4, 32)
    tensors = {**made.gptq("a"), "norm.weight": torch.ones(64, dtype=torch.float16)}
    save_model(tmp_path, tensors, {"quant_method": "gptq", "bits": 4, "group_size": 32}, dtype="float16")
    found = json.loads(run("inspect", tmp_path, "--json").stdout)
    rows = {row["layer_name"]: row for row in found["layers"]}
    stored = sum(tensors[f"a.{part}"].nbytes for part in ("qweight", "qzeros", "scales", "g_idx"))
    assert (rows["a.weight"]["source_nbytes"], rows["a.weight"]["stored_nbytes"]) == (64 * 128 * 2, stored)
    assert rows["a.weight"]["encoding"] == "GPTQ's 4-bit codes and scales"
    assert rows["norm.weight"]["stored_nbytes"] is None
    assert found["totals"]["stored_nbytes"] == stored + 128
    lines = run("inspect", tmp_path).stdout.splitlines()
    assert any(line.split()[-3:] == ["stored", "as", "stored"] and "decoded" in line for line in lines)
    assert any("a.weight" in line and "16.4 kB" in line and "GPTQ's 4-bit codes" in line for line in lines)


def test_verify_of_a_sound_dataset_ends_with_0(dataset: Path) -> None:
    result = run("verify", dataset)
    assert result.exit_code == 0
    assert "part.parquet: sound; checked 1 layer, 1 row, 1 object" in result.stdout
    assert json.loads(run("verify", dataset, "--json").stdout)["is_sound"]


def test_verify_names_the_layer_that_fails_and_ends_with_1(corrupt: Path) -> None:
    result = run("verify", corrupt)
    assert result.exit_code == 1
    assert "a\\x1b[2J<script>[bold]" in result.stdout
    assert "NOT sound" in result.stdout
    assert "\x1b" not in result.output


def test_verify_as_json_ends_with_1_too(corrupt: Path) -> None:
    result = run("verify", corrupt, "--json")
    assert result.exit_code == 1
    assert result.stderr.startswith("verify: ")
    assert run("verify", corrupt, "--json", "-q").stderr == ""
    values = json.loads(result.stdout)
    assert not values["is_sound"]
    assert {problem["layer_name"] for problem in values["problems"]} == {HOSTILE}


def test_verify_of_nothing_is_bad_input(tmp_path: Path) -> None:
    assert run("verify", tmp_path / "nowhere").exit_code == 2


def test_report_shows_the_essentials_and_what_cosine_is_not(target: Path) -> None:
    result = run("report", target)
    assert result.exit_code == 0
    assert "0.31× against fp16" in result.stdout
    assert "Weight cosine is not accuracy" in result.stdout


def test_report_as_json_is_the_file_with_a_version(target: Path) -> None:
    values = json.loads(run("report", target, "--json").stdout)
    assert values == {"schema_version": 1, **json.loads(GOLDEN.read_text()), "timeline": None}


@pytest.mark.parametrize("form", [("--compare", "B", "--compare", "C"), ("--compare", "B", "C")])
def test_report_compares_several_targets(tmp_path: Path, form: tuple[str, ...]) -> None:
    places = {name: make_target(tmp_path / name) for name in "ABC"}
    arguments = [places.get(word, word) for word in form]
    shown = run("report", places["A"], *arguments)
    assert shown.exit_code == 0
    head = next(line for line in shown.stdout.splitlines() if str(tmp_path) in line)
    assert head.split() == [str(places[name]) for name in "ABC"]
    loaded = json.loads(run("report", places["A"], *arguments, "--json").stdout)
    assert [one["target"] for one in loaded["reports"]] == [str(places[name]) for name in "ABC"]


def test_report_writes_a_page(target: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run("report", target, "--html", page)
    assert result.exit_code == 0
    assert str(page) in result.stdout
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_report_writes_a_page_of_a_comparison(target: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    other = make_target(tmp_path / "other")
    assert run("report", target, "--compare", other, "--html", page).exit_code == 0
    assert str(other) in page.read_text()


def test_targets_of_different_models_are_said_to_be_such(target: Path, tmp_path: Path) -> None:
    values = json.loads(GOLDEN.read_text())
    values["totals"]["params"] += 1
    other = make_target(tmp_path / "other")
    (other / "report" / "report.json").write_text(json.dumps(values))
    shown = " ".join(run("report", target, "--compare", other).stdout.split())
    assert "B (other) is not of the same model as A" in shown
    assert "No figure is marked as the best" in shown


def test_a_page_that_cannot_be_written_is_an_error(target: Path, tmp_path: Path) -> None:
    result = run("report", target, "--html", tmp_path / "no" / "page.html")
    assert result.exit_code == 1
    assert "No such file" in result.stderr


def test_credentials_do_not_reach_the_output() -> None:
    result = run("report", "memory://user:secret@nothing/here?sig=secret")
    assert result.exit_code == 2
    assert "secret" not in result.output


def test_a_config_says_how_to_reach_the_storage(target: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("run: {no_such_key: 1}")
    result = run("report", target, "--config", config)
    assert result.exit_code == 2
    assert "no_such_key" in result.stderr
