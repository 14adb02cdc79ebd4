"""Bad input and full disks end with one clear line, the right exit code, and nothing published."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.datasets import weights_of
from tests.integration.program import call, commits, is_published, parts, run, write_checkpoint

FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source" / "model.safetensors", 3, 512, 1024)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def error_of(done: CompletedProcess[str], code: int) -> str:
    """The one line that a failed run ends with."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("quantize: ")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("kept_nbytes", [0, 7, 100, -1, -(1 << 20)])
def test_a_truncated_file_is_named_before_anything_is_written(
    source: Path, target: Path, kept_nbytes: int
) -> None:
    source.write_bytes(source.read_bytes()[:kept_nbytes])
    assert str(source) in error_of(call("quantize", source.parent, target), 2)
    assert not target.exists()


@pytest.mark.parametrize(("value", "quant"), [(np.nan, "int8"), (np.inf, "int2"), (-np.inf, "int4")])
def test_a_bad_value_is_named_by_layer_and_index(
    source: Path, target: Path, value: float, quant: str
) -> None:
    tensors = dict(load_file(source))
    tensors["layers.1.weight"][300, 77] = value
    tensors["layers.1.weight"][300, 78] = value
    save_file(tensors, source)
    line = error_of(run("quantize", source, target, "--quant", quant), 2)
    assert "layer 'layers.1.weight'" in line
    assert "[300, 77]" in line
    assert not is_published(target)
    assert call("verify", target).returncode == 1


def test_a_layer_with_nan_is_kept_where_the_config_says_so(source: Path, target: Path) -> None:
    tensors = dict(load_file(source))
    tensors["layers.1.weight"][300, 77] = np.nan
    save_file(tensors, source)
    config = source.with_name("keep.yaml")
    config.write_text("quant_type: int8\nnon_finite: keep\n")
    assert call("quantize", source, target, "--config", config).returncode == 0
    data, scales, _ = weights_of(target)["layers.1.weight", 0]
    assert (data, scales) == (tensors["layers.1.weight"].tobytes(), b"")


def test_a_target_with_other_files_is_refused_and_left_alone(source: Path, target: Path) -> None:
    target.mkdir()
    (target / "thesis.tex").write_text("the only copy")
    for more in ([], ["--overwrite"], ["--dry-run"]):
        line = error_of(call("quantize", source, target, *more), 2)
        assert str(target) in line
        assert [f.name for f in target.iterdir()] == ["thesis.tex"]


def test_a_target_that_is_a_file_is_refused(source: Path, target: Path) -> None:
    target.write_text("the only copy")
    assert "this is a file, but the target has to be a folder" in error_of(
        call("quantize", source, target), 2
    )
    assert target.read_text() == "the only copy"


@pytest.mark.parametrize("place", [".", "model.safetensors"])
def test_the_source_is_never_the_target(source: Path, place: str) -> None:
    before = source.read_bytes()
    for more in ([], ["--overwrite"], ["--dry-run"]):
        error_of(call("quantize", source.parent, source.parent / place, *more), 2)
        assert source.read_bytes() == before
        assert [f.name for f in source.parent.iterdir()] == [source.name]


@pytest.mark.parametrize("name", ["target", "link", "source/../target", "target/weights"])
@pytest.mark.parametrize("as_target", [False, True], ids=["as source", "as target"])
def test_a_dataset_is_not_overwritten_by_itself_under_any_name(
    source: Path, target: Path, name: str, *, as_target: bool
) -> None:
    assert call("quantize", source, target).returncode == 0
    before = weights_of(target)
    target.with_name("link").symlink_to(target)
    other = f"{target.parent}/{name}"
    pair = (target, other) if as_target else (other, target)
    line = error_of(call("quantize", *pair, "--quant", "int2", "--overwrite"), 2)
    assert "the source itself" in line
    assert weights_of(target) == before


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("quant_typ: int8", ["quant_typ", "quant_type"]),
        ("quant_type: int8\ngroupsize: 64", ["groupsize", "group_size"]),
        ("quant_type: int8\nrun: {shard_byte: 1MiB}", ["shard_byte", "shard_bytes"]),
        ("quant_type: int8\noverrides: [{layers: a, quanttype: int4}]", ["quanttype", "quant_type"]),
        ("quant_type: int8\noverrides: [{layers: nothing.like.it, quant_type: int4}]", ["nothing.like.it"]),
        ("quant_type: int5", ["int5", "int4"]),
        ("quant_type: int4\nmethod: gptq", ["method", "gptq", "hessians"]),
        ("quant_type: [int8", ["YAML"]),
    ],
)
def test_a_wrong_config_names_the_key_and_the_nearest_known_one(
    source: Path, target: Path, text: str, named: list[str]
) -> None:
    config = source.with_name("config.yaml")
    config.write_text(text)
    line = error_of(call("quantize", source, target, "--config", config), 2)
    assert all(word in line for word in named)
    assert not target.exists()


@pytest.mark.parametrize("missing", ["source", "config"])
def test_what_is_not_there_is_named(source: Path, target: Path, missing: str) -> None:
    nowhere = source.parent / "nowhere"
    arguments = [nowhere, target] if missing == "source" else [source, target, "--config", nowhere]
    assert str(nowhere) in error_of(run("quantize", *arguments), 2)
    assert not target.exists()


def test_a_full_disk_is_named_and_what_was_finished_is_kept(
    source: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path_factory.mktemp("d") / "target"  # of a long path, the error leaves the middle out
    tensors = dict(load_file(source))
    tensors["layers.0.weight"][:] = 0  # parts that compress to next to nothing still fit
    save_file(tensors, source)
    config, whole = source.with_name("config.yaml"), source.with_name("quiet")
    config.write_text("quant_type: int8\nrun: {shard_bytes: 1MiB, block_bytes: 1MiB}\n")
    assert call("quantize", source, whole, "--config", config).returncode == 0
    line = error_of(run("quantize", source, target, "--config", config, before=FULL_DISK), 1)
    assert str(target) in line
    assert "File too large" in line
    assert not is_published(target)
    finished = commits(target)
    assert 0 < finished < commits(whole)
    assert len(parts(target)) == finished  # nothing half written is left
    done = call("quantize", source, target, "--config", config, "--json")
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["report"]["run"]["resumed_shards"]) == finished
    assert weights_of(target) == weights_of(whole)


def test_errors_are_json_where_that_was_asked_for(source: Path, target: Path) -> None:
    done = run("quantize", source.parent / "nowhere", target, "--json")
    assert done.returncode == 2
    assert done.stderr == ""
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == "not-found"
    assert error["uri"].endswith("nowhere")
