"""One worker or many, stopped and resumed, or into a place that holds something else: the same statistics, or an
error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from arrowquant_dist import ArrowQuantizer, Calibration, QuantizationConfig, RunConfig, calibrate
from arrowquant_dist.calibration import run as calibration_run
from arrowquant_dist.calibration.identity import Identity
from arrowquant_dist.calibration.place import CalibrationPlace
from arrowquant_dist.calibration.worker import SliceWorker
from arrowquant_dist.errors import (
    ArrowQuantError,
    CorruptWeights,
    InvalidConfig,
    SourceChanged,
    StorageError,
    TargetConflict,
    UnquantizableWeights,
)
from arrowquant_dist.models.chain import Chain
from arrowquant_dist.storage.open import open_store
from tests.evaluation.models import TEXTS, save_llama
from tests.servers.fixtures import Bucket

INT4 = QuantizationConfig("int4", per_channel=False, group_size=16)
INT4_GPTQ = QuantizationConfig("int4", per_channel=False, group_size=16, method="gptq", hessians="out")
MANY = [f"{text} {number}" for number in range(7) for text in TEXTS]  # of several slices


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama") / "source")


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.safetensors"))}


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    calibrate(source, out, MANY, quantize=INT4, run=RunConfig(engine="inline", workers=1))
    assert not (out / "run").exists() or not any(path.is_file() for path in (out / "run").rglob("*"))
    return contents(out)


def test_bytes_do_not_depend_on_the_number_of_workers(
    source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    calibrate(source, tmp_path / "out", MANY, quantize=INT4, run=RunConfig(engine="inline", workers=3))
    assert contents(tmp_path / "out") == whole


@pytest.mark.slow
def test_bytes_are_the_same_from_ray_s_actors(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    calibrate(source, tmp_path / "out", MANY, quantize=INT4, run=RunConfig(engine="ray", workers=2))
    assert contents(tmp_path / "out") == whole
    assert len(whole) > 2


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", [1, 14])
def test_the_same_command_goes_on_where_it_was_stopped(
    source: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    run, done = RunConfig(engine="inline", workers=1), 0
    own = SliceWorker.run

    def stopping(self: SliceWorker, *args: Any) -> Any:
        nonlocal done
        if done == after:
            raise Stopped
        done += 1
        return own(self, *args)

    monkeypatch.setattr(SliceWorker, "run", stopping)
    with pytest.raises(Stopped):
        calibrate(source, tmp_path / "out", MANY, quantize=INT4, run=run)
    assert not (tmp_path / "out" / "calibration.json").exists()
    began: list[tuple[int, int, int]] = []

    def noted(self: SliceWorker, job: Any, *args: Any) -> Any:
        began.append((job.part, job.stage, job.number))
        return own(self, job, *args)

    monkeypatch.setattr(SliceWorker, "run", noted)
    calibrate(source, tmp_path / "out", MANY, quantize=INT4, run=run)
    assert contents(tmp_path / "out") == whole
    slices = 1 + max(index for _, _, index in began)
    steps = 2 + 2 * 5 + 1  # before the blocks, of each block four stages and what goes on, and the head
    assert slices > 1
    assert len(began) == len({*began}) == steps * slices - after


def test_a_finished_one_is_found_again_without_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a process had left that was killed after its last write."""
    first = calibrate(source, tmp_path / "out", [*TEXTS])
    monkeypatch.setattr(SliceWorker, "run", None)
    left = tmp_path / "out" / "run" / "done" / "00000.json"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"{}")
    assert calibrate(source, tmp_path / "out", [*TEXTS]) == first
    assert not left.exists()
    assert json.loads((tmp_path / "out" / "calibration.json").read_text())["format_version"] == 2


def test_what_another_process_finishes_meanwhile_is_what_comes_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one then removes run/, where this one's next step has its inputs."""
    run, out = RunConfig(engine="inline", workers=1), tmp_path / "out"
    other = calibrate(source, tmp_path / "other", [*TEXTS], quantize=INT4, run=run)
    own = SliceWorker.run

    def beaten(self: SliceWorker, job: Any, *args: Any) -> Any:
        if (job.part, job.stage) == (1, 2) and not (out / "calibration.json").exists():
            shutil.rmtree(out / "run")
            shutil.copytree(tmp_path / "other", out, dirs_exist_ok=True)
        return own(self, job, *args)

    monkeypatch.setattr(SliceWorker, "run", beaten)
    found = calibrate(source, out, [*TEXTS], quantize=INT4, run=run)
    assert (found.fingerprint, found.layers) == (other.fingerprint, other.layers)
    assert contents(out) == contents(tmp_path / "other")
    assert not any(path.is_file() for path in (out / "run").rglob("*"))


def test_what_a_killed_one_had_begun_to_write_goes_at_the_end(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".statistics-00001-000.safetensors.tmp-0123").write_bytes(b"half")
    calibrate(source, out, [*TEXTS])
    assert {path.suffix for path in out.iterdir() if path.is_file()} == {".json", ".safetensors"}


def test_another_calibration_is_refused_and_overwritten_on_demand(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = calibrate(source, out, [*TEXTS])
    with pytest.raises(TargetConflict, match="here were calibrated with other texts; choose"):
        calibrate(source, out, [*TEXTS][1:])
    with pytest.raises(TargetConflict, match="with other texts and another config; choose"):
        calibrate(source, out, [*TEXTS][1:], quantize=INT4)
    second = calibrate(source, out, [*TEXTS][1:], run=RunConfig(overwrite=True))
    assert second.fingerprint != first.fingerprint
    assert second.texts["count"] == len(TEXTS) - 1


def test_one_of_another_version_is_told_from_another_one(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun or finished, also by a version that did not write what it is of."""
    out = tmp_path / "out"
    calibrate(source, out, [*TEXTS])
    begun = CalibrationPlace(open_store(str(tmp_path / "begun")), Identity("it", {}))
    assert begun.begin(overwrite=False) is None
    monkeypatch.setattr(calibration_run, "calibration_digest", lambda: "another")
    for folder in (out, tmp_path / "begun"):
        with pytest.raises(TargetConflict, match="by another version of this package"):
            calibrate(source, folder, [*TEXTS])
    (tmp_path / "begun" / "run" / "calibration.json").write_text("[")
    with pytest.raises(TargetConflict, match="whose settings cannot be read"):
        calibrate(source, tmp_path / "begun", [*TEXTS])


def test_a_folder_of_others_is_refused_and_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for run in (RunConfig(), RunConfig(overwrite=True)):
        with pytest.raises(TargetConflict, match=r"notes\.txt"):
            calibrate(source, tmp_path / "out", [*TEXTS], run=run)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_the_model_s_own_folder_is_refused(source: Path) -> None:
    with pytest.raises(InvalidConfig, match="OUT holds the model itself"):
        calibrate(source, source, [*TEXTS])


def test_too_few_texts_are_refused_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="tokens"):
        calibrate(source, tmp_path / "out", ["short"])
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_is_one_clear_error(source: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_bytes((source / name).read_bytes())
    with pytest.raises(InvalidConfig, match="no tokenizer"):
        calibrate(tmp_path / "model", tmp_path / "out", [*TEXTS])
    assert not (tmp_path / "out").exists()


def test_a_model_that_transformers_does_not_know_is_one_clear_error(source: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for path in source.iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    changed = {**config, "model_type": "no-such-model", "architectures": ["NoSuchModel"]}
    (tmp_path / "model" / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ArrowQuantError) as caught:
        calibrate(tmp_path / "model", tmp_path / "out", [*TEXTS])
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", [None, INT4_GPTQ])
def test_a_model_that_makes_nan_is_an_error_that_names_the_layer_that_comes_next(
    source: Path, tmp_path: Path, config: QuantizationConfig | None
) -> None:
    model = tmp_path / "model"
    shutil.copytree(source, model)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.input_layernorm.weight"][3] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnquantizableWeights, match="what reaches it from the texts is NaN or inf") as caught:
        calibrate(model, tmp_path / "out", [*TEXTS], quantize=config)
    assert caught.value.layer == "model.layers.1.self_attn.q_proj.weight"
    assert not (tmp_path / "out" / "calibration.json").exists()


def test_statistics_that_were_damaged_are_an_error_that_names_tensor_and_file(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    calibrate(source, out, [*TEXTS], quantize=INT4_GPTQ)
    path = out / "statistics-00001-000.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = "model.layers.0.self_attn.q_proj.weight.cross"
    data[8 + size + header[name]["data_offsets"][0] + 100] ^= 1
    path.write_bytes(data)
    quantizer = ArrowQuantizer(INT4_GPTQ.replace(hessians=str(out)), RunConfig(engine="inline"))
    with pytest.raises(CorruptWeights, match="the calibrated values are damaged") as caught:
        quantizer.quantize(source, tmp_path / "target")
    assert (caught.value.layer, caught.value.uri) == (name, str(path))
    assert not (tmp_path / "target" / "manifest.json").exists()


def test_statistics_go_to_object_storage_and_are_finished_there_last(source: Path, bucket: Bucket) -> None:
    run = RunConfig(engine="inline", storage_options=bucket.storage_options)
    found = calibrate(source, f"{bucket.uri}/out", [*TEXTS], run=run)
    assert isinstance(found, Calibration)
    assert found.out.endswith("/out")


def test_a_write_that_fails_leaves_no_finished_calibration(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise StorageError("the disk is full", uri="out")

    monkeypatch.setattr(CalibrationPlace, "add", failing)
    with pytest.raises(StorageError):
        calibrate(source, tmp_path / "out", [*TEXTS])
    assert not (tmp_path / "out" / "calibration.json").exists()
    monkeypatch.undo()
    calibrate(source, tmp_path / "out", [*TEXTS])
    assert (tmp_path / "out" / "calibration.json").exists()


def test_a_source_that_changes_between_blocks_is_noticed_before_the_block_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, own, ran = save_llama(tmp_path / "source"), Chain.fill, list[int]()

    def changing(self: Chain, part: int) -> None:
        if part == 2:
            path = source / "model.safetensors"
            path.write_bytes(path.read_bytes() + b" ")
        own(self, part)

    def noted(self: SliceWorker, job: Any, *args: Any) -> Any:
        ran.append(job.part)
        return run(self, job, *args)

    run = SliceWorker.run
    monkeypatch.setattr(Chain, "fill", changing)
    monkeypatch.setattr(SliceWorker, "run", noted)
    with pytest.raises(SourceChanged):
        calibrate(source, tmp_path / "out", [*TEXTS[:6]])
    assert {*ran} == {0, 1}
    assert not (tmp_path / "out" / "calibration.json").exists()
