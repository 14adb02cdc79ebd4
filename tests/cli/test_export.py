"""`export`: what its options become, what it prints, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.cli import app
from arrowquant_dist.config import Storage
from arrowquant_dist.errors import CorruptWeights, PartialRun
from arrowquant_dist.export import ExportOptions
from arrowquant_dist.storage.open import open_store
from tests.export.datasets import flip, loaded, made_dataset, same, tensors_of
from tests.export.models import quantized, small_llama
from tests.servers.fixtures import Bucket
from tests.sources import random_weights

ESCAPE = "embed\x1b[2J"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    tensors = {**random_weights(2, 256, 512, torch.float32), ESCAPE: torch.ones(4, 64)}
    return made_dataset(tmp_path_factory.mktemp("cli"), tensors)


def run(*arguments: object, form: str = "safetensors", env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments), "--format", form], env=env)


def one_line(result: Result) -> str:
    """Of an export that was refused: all that it says."""
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_options_become_the_export_and_its_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []

    def record(*arguments: Any, progress: object) -> None:
        calls.append(arguments)
        raise PartialRun("stopped")

    monkeypatch.setattr("arrowquant_dist.export.export_dataset", record)
    config = tmp_path / "c.yaml"
    config.write_text("run: {workers: 7, engine: inline}\n")
    what = ("--activations", "int8", "--requantize", "--source", "s3://b/m", "--overwrite")
    how = ("--max-file-bytes", "2GiB", "--memory-budget", "96MiB", "--config", config, "--workers", 3)
    assert run("a", "b", *what, *how, "--json", form="compressed-tensors").exit_code == 1
    assert [call[:4] for call in calls] == [
        (
            "a",
            "b",
            ExportOptions(
                "compressed-tensors",
                activations="int8",
                requantize=True,
                source="s3://b/m",
                max_file_bytes=2 << 30,
                memory_budget=96 << 20,
                overwrite=True,
            ),
            RunConfig(workers=3, engine="inline"),
        )
    ]


def test_it_ends_with_what_is_written_on_stdout_and_progress_on_stderr(dataset: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(dataset, out)
    assert result.exit_code == 0
    assert " ".join(result.stdout.split()) == f"written to {out}: safetensors, 2 files, 1.05 MB"
    assert result.stderr.startswith("export: ")
    assert "5 of 5 layers" in result.stderr
    assert same(tensors_of(out), loaded(dataset))


def test_json_is_one_document_and_all_that_is_printed(dataset: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for already_finished in (False, True):
        result = run(dataset, out, "--json")
        assert result.exit_code == 0
        assert all(line.startswith(("export: ", "{")) for line in result.stderr.splitlines())
        values = json.loads(result.stdout)
        assert values == {
            "schema_version": 1,
            "out": str(out),
            "already_finished": already_finished,
            "export": json.loads((out / "export.json").read_bytes()),
        }
        assert [file["path"] for file in values["export"]["files"]] == ["model.safetensors", "config.json"]


def test_a_finished_export_says_so_and_ends_with_0(dataset: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(dataset, out).exit_code == 0
    before = contents(out)
    result = run(dataset, out)
    assert result.exit_code == 0
    assert " ".join(result.stdout.split()) == f"{out} is finished already: safetensors, 2 files, 1.05 MB"
    assert contents(out) == before


def test_a_dry_run_prints_what_would_be_written_and_writes_nothing(dataset: str, tmp_path: Path) -> None:
    result = run(dataset, tmp_path / "out", "--dry-run", "--max-file-bytes", "1MiB")
    assert result.exit_code == 0
    assert result.stderr == ""
    text = " ".join(result.stdout.split())
    assert "layers 5, 0 of them requantized" in text
    assert "model-00001-of-00002.safetensors" in text
    assert "beside 2 small files" in text
    assert not (tmp_path / "out").exists()


def test_a_dry_run_as_json_is_the_summary_of_what_is_then_written(dataset: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    planned = json.loads(run(dataset, out, "--dry-run", "--json").stdout)
    assert not out.exists()
    record = json.loads(run(dataset, out, "--json").stdout)["export"]
    sizes = {file["path"]: file["nbytes"] for file in record["files"]}
    assert planned["mark"] == record["mark"]
    assert {file["path"]: file["nbytes"] for file in planned["files"]} == {
        "model.safetensors": sizes["model.safetensors"]
    }
    assert planned["small_files"] == ["config.json"]
    assert (planned["layers"], planned["files"][0]["tensors"], planned["tensors"]) == (
        5,
        5,
        {"F32": [5, 4 * (2 * 256 * 512 + 2 * 512 + 4 * 64)]},
    )


@pytest.mark.parametrize(
    ("options", "form", "said"),
    [
        ((), "onnx", "format: must be one of"),
        (("--activations", "int4"), "compressed-tensors", "activations: must be"),
        (("--activations", "int8"), "v1", "the format v1 has no such option"),
        (("--requantize",), "safetensors", "the format safetensors writes every layer as it is"),
        (("--source", "minilm"), "compressed-tensors", "is where --requantize takes values from"),
        (("--memory-budget", "1MiB"), "v1", "memory_budget: must be"),
        (("--max-file-bytes", "much"), "v1", "max_file_bytes: must be"),
        (("--workers", "0"), "v1", "workers: must be"),
        (("--engine", "dask"), "v1", "engine: must be"),
    ],
)
def test_impossible_options_are_refused_in_one_line(
    dataset: str, tmp_path: Path, options: tuple[str, ...], form: str, said: str
) -> None:
    line = one_line(run(dataset, tmp_path / "out", *options, form=form))
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "out").exists()


def test_a_format_has_to_be_given(dataset: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", dataset, str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "--format" in result.stderr


def test_a_dataset_that_is_not_there_is_bad_input_and_one_document(tmp_path: Path) -> None:
    assert one_line(run(tmp_path / "none", tmp_path / "out")).startswith(f"error: {tmp_path / 'none'}: ")
    result = run(tmp_path / "none", tmp_path / "out", "--json")
    assert (result.exit_code, result.stderr) == (2, "")
    assert json.loads(result.stdout)["error"]["uri"] == str(tmp_path / "none")


def test_layers_that_the_format_cannot_hold_are_refused_by_name_in_one_line(tmp_path: Path) -> None:
    config = QuantizationConfig("int4", per_channel=False, group_size=64, symmetric=False)
    dataset = quantized(tmp_path, small_llama(), config)
    for dry in ((), ("--dry-run",)):
        line = one_line(run(dataset, tmp_path / "out", *dry, form="compressed-tensors"))
        assert "model.layers.0.mlp.gate_proj.weight" in line
        assert "--requantize" in line
        assert not (tmp_path / "out").exists()
    result = run(dataset, tmp_path / "out", "--json", form="compressed-tensors")
    assert (result.exit_code, json.loads(result.stdout)["error"]["kind"]) == (2, "invalid-config")


def test_another_export_in_the_place_is_refused_and_overwrite_replaces_it(
    dataset: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(dataset, out, form="v1").exit_code == 0
    before = contents(out)
    line = one_line(run(dataset, out))
    assert "v1 there, safetensors here" in line
    assert "--overwrite" in line
    assert contents(out) == before
    assert run(dataset, out, "--overwrite").exit_code == 0
    assert sorted(contents(out)) == ["config.json", "export.json", "model.safetensors"]
    assert same(tensors_of(out), loaded(dataset))


def test_a_damaged_dataset_ends_with_1_and_names_layer_and_part(tmp_path: Path) -> None:
    dataset = made_dataset(tmp_path, random_weights(1, 64, 128, torch.float32))
    part = flip(dataset, "layers.0.weight")
    result = run(dataset, tmp_path / "out")
    assert result.exit_code == CorruptWeights("").exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"error: layer 'layers.0.weight', {part}, bytes ")
    assert "Traceback" not in result.output
    error = json.loads(run(dataset, tmp_path / "out", "--json").stdout)["error"]
    assert (error["kind"], error["uri"]) == ("corrupt-weights", part)
    assert not (tmp_path / "out" / "export.json").exists()
    assert not (tmp_path / "out" / "config.json").exists()


def test_an_interrupted_export_says_how_to_resume(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, progress: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("arrowquant_dist.export.export_dataset", interrupt)
    result = run(dataset, "out")
    assert result.exit_code == 130
    assert "the same command again to resume" in result.stderr
    assert json.loads(run(dataset, "out", "--json").stdout)["error"]["kind"] == "interrupted"


def test_credentials_show_nowhere(dataset: str, bucket: Bucket, tmp_path: Path) -> None:
    """Neither those of the config nor those in a URL, in what is printed, in errors or in what is written."""
    secret = bucket.storage_options["secret"]
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"run": {"storage_options": bucket.storage_options}}))
    there = open_store(f"{bucket.uri}/dataset", Storage(bucket.storage_options))
    for path, data in contents(Path(dataset)).items():
        there.write(path, data)
    places = f"{bucket.uri}/dataset", f"{bucket.uri}/out"
    for options in (("--dry-run",), ("--json",), (), ("--overwrite",)):
        result = run(*places, "--config", config, *options)
        assert result.exit_code == 0, result.output
        assert secret not in result.output
    store = open_store(places[1], Storage(bucket.storage_options))
    assert not [info.path for info in store.list() if secret.encode() in store.read(info.path)]
    named = bucket.uri.replace("s3://", "s3://key:hunter2@")
    for arguments in ((f"{named}/none", tmp_path / "out"), (dataset, f"{named}/../out")):
        for options in ((), ("--json",)):
            result = run(*arguments, "--config", config, *options)
            assert result.exit_code == 2, result.output
            assert "hunter2" not in result.output
