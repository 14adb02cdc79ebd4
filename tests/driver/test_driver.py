from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import pytest
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig
from arrowquant_dist.config import LayerOverride, Transfer
from arrowquant_dist.driver import Progress, plan_only, quantize
from arrowquant_dist.driver.earlier import finished_outcome
from arrowquant_dist.engine import Engine, EngineEvent, EngineFacts, OnEvent, choose_engine
from arrowquant_dist.engine.inline import InlineEngine
from arrowquant_dist.engine.run import finished
from arrowquant_dist.errors import (
    IncompleteDataset,
    InvalidConfig,
    StorageError,
    TargetConflict,
    UnquantizableWeights,
)
from arrowquant_dist.plan import summarize
from arrowquant_dist.storage.local import LocalStore
from arrowquant_dist.target.target import Target
from arrowquant_dist.worker.job import Context, J
from tests.datasets import manifest_of, rows_of, weights_of
from tests.sources import random_weights, save_checkpoint

CONFIG = QuantizationConfig()


@pytest.fixture
def source(tmp_path: Path) -> str:
    return save_checkpoint(tmp_path / "source", random_weights(4, 512, 512, torch.float32))


def test_every_tensor_of_the_source_is_in_the_dataset_once(source: str, tmp_path: Path) -> None:
    quantize(source, str(tmp_path / "out"), CONFIG, RunConfig())
    assert {name for name, _ in rows_of(tmp_path / "out")} == set(random_weights(4, 1, 1, torch.float32))


def test_values_whose_squares_no_number_holds_are_kept_and_the_run_ends(tmp_path: Path) -> None:
    """Its receipts were refused as unreadable, by every run again."""
    weight = torch.randn(64, 64, dtype=torch.float64)
    weight[3, 5], weight[4, 4] = 1e300, -1.7e308
    source = save_checkpoint(tmp_path / "source", {"a.weight": weight, "b.weight": weight * 2**-1000})
    quantize(source, str(tmp_path / "out"), QuantizationConfig("fp16"), RunConfig())
    assert weights_of(tmp_path / "out")["a.weight", 0][0] == weight.numpy().tobytes()


def test_progress_ends_at_the_total_and_never_goes_back(source: str, tmp_path: Path) -> None:
    seen: list[Progress] = []
    quantize(source, str(tmp_path / "out"), CONFIG, RunConfig(workers=2), seen.append)
    assert seen[0].done_nbytes == 0
    assert (
        seen[-1].done_nbytes
        == seen[-1].total_nbytes
        == sum(w.nbytes for w in random_weights(4, 512, 512, torch.float32).values())
    )
    assert [p.done_nbytes for p in seen] == sorted(p.done_nbytes for p in seen)
    assert seen[-1].done_layers == seen[-1].total_layers == 8
    assert seen[-1].workers_alive > 0


class Repeating(InlineEngine):
    """Every row block is told twice, and taken back twice at the end: retries as an engine may tell them at worst."""

    def run(self, context: Context[J], shards: Sequence[J], on_event: OnEvent) -> EngineFacts:
        def twice(event: EngineEvent) -> None:
            on_event(event)
            on_event(event)

        facts = super().run(context, shards, twice)
        blocks = [block for shard in shards for block in shard.blocks]
        all_of_it = finished(blocks, 1)
        for _ in range(3):
            on_event(EngineEvent(-len(blocks), -all_of_it.nbytes, -all_of_it.layers, 1))
        return facts


def test_progress_stays_between_nothing_and_all_whatever_retries_do(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arrowquant_dist.driver.run.choose_engine", lambda run, *_: Repeating(run.workers))
    seen: list[Progress] = []
    quantize(source, str(tmp_path / "out"), CONFIG, RunConfig(workers=2), seen.append)
    assert all(0 <= p.done_nbytes <= p.total_nbytes and 0 <= p.done_layers <= p.total_layers for p in seen)
    assert seen[-1].done_layers == seen[-1].done_nbytes == 0


def test_an_engine_is_told_the_memory_that_a_dry_run_shows(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the settings of this run: what it is set apart on a cluster is what a worker takes there."""
    remote, target = "memory://told/source", "memory://told/out"
    fsspec.filesystem("memory").put(source, "/told/source", recursive=True)
    told: list[int] = []

    def choose(run: RunConfig, nbytes: int) -> Engine:
        told.append(nbytes)
        return choose_engine(run, nbytes)

    monkeypatch.setattr("arrowquant_dist.driver.run.choose_engine", choose)
    for run in (RunConfig(), RunConfig(transfer=Transfer(requests=1, range_bytes=64 << 10))):
        quantize(remote, target, CONFIG, run.replace(overwrite=True))
        assert told[-1] == summarize(plan_only(remote, target, CONFIG, run), target, run).worker_memory_nbytes
    assert told[0] - told[1] > 4 << 20  # what fewer and smaller ranges hold less


def test_resumed_work_is_done_from_the_first_event_on(source: str, tmp_path: Path) -> None:
    run = RunConfig(shard_bytes=1 << 20)
    quantize(source, str(tmp_path / "out"), CONFIG, run)
    (tmp_path / "out/manifest.json").unlink()
    commits = sorted((tmp_path / "out/run/commits").iterdir())
    commits[0].unlink()
    seen: list[Progress] = []
    report = quantize(source, str(tmp_path / "out"), CONFIG, run, seen.append).report
    assert 0 < seen[0].done_nbytes < seen[0].total_nbytes == seen[-1].done_nbytes
    work = report.work
    assert work is not None
    assert (work.this_run.shards, work.earlier_runs.shards) == (1, len(commits) - 1)
    assert work.this_run.source_nbytes + work.earlier_runs.source_nbytes == report.totals.source_nbytes


def test_the_report_says_where_the_time_went(source: str, tmp_path: Path) -> None:
    report = quantize(source, str(tmp_path / "out"), CONFIG, RunConfig(workers=2)).report
    assert set(report.run.phases) == {"planning", "running", "reducing", "publishing"}
    assert sum(report.run.phases.values()) <= report.run.wall_seconds
    assert report.work is not None
    assert report.work.this_run.read_nbytes >= report.totals.source_nbytes
    assert report.work.this_run.written_nbytes == report.totals.parts_nbytes
    assert report.work.efficiency is not None
    assert 0 < report.work.efficiency <= 1
    assert [node.shards for node in report.work.nodes] == [report.totals.shards]


def test_a_driver_whose_engine_fails_after_another_one_published_is_done_too(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tmp_path / "out")

    def outrun(*_: object) -> EngineFacts:
        monkeypatch.undo()
        quantize(source, target, CONFIG, RunConfig())
        raise StorageError("an upload was given up")

    monkeypatch.setattr(InlineEngine, "run", outrun)
    outcome = quantize(source, target, CONFIG, RunConfig())
    assert outcome.already_finished
    assert outcome.report.totals.layers == 8


def test_what_failed_first_is_told_though_the_target_fails_too(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> EngineFacts:
        monkeypatch.setattr(LocalStore, "read", fail_to_read)
        raise StorageError("first")

    def fail_to_read(*_: object) -> bytes:
        raise StorageError("second")

    monkeypatch.setattr(InlineEngine, "run", fail)
    with pytest.raises(StorageError, match="first"):
        quantize(source, str(tmp_path / "out"), CONFIG, RunConfig())


def test_a_finished_target_that_lost_a_part_is_not_called_finished(source: str, tmp_path: Path) -> None:
    quantize(source, str(tmp_path / "out"), CONFIG, RunConfig())
    next((tmp_path / "out/weights").rglob("*.parquet")).unlink()
    with pytest.raises(IncompleteDataset, match="--repair"):
        quantize(source, str(tmp_path / "out"), CONFIG, RunConfig())


def test_a_dataset_that_is_being_cleared_is_not_called_finished(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is there when the target is listed, and gone when it is read."""
    quantize(source, str(tmp_path / "out"), CONFIG, RunConfig())
    read = LocalStore.read

    def clears_meanwhile(store: LocalStore, path: str) -> bytes:
        if path == "manifest.json":
            store.delete([path])
        return read(store, path)

    monkeypatch.setattr(LocalStore, "read", clears_meanwhile)
    with pytest.raises(TargetConflict, match="another run is clearing the target"):
        finished_outcome(
            Target.open(str(tmp_path / "out")),
            plan_only(source, str(tmp_path / "new"), CONFIG, RunConfig()),
            Target.open(str(tmp_path / "out")).look(),
        )


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_no_target_and_stays(source: str, tmp_path: Path, *, overwrite: bool) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("years of work")
    for target in (file, file / "below"):
        for call in (quantize, plan_only):
            with pytest.raises(TargetConflict, match="file"):
                call(source, str(target), CONFIG, RunConfig(overwrite=overwrite))
    assert file.read_text() == "years of work"


def test_a_finished_target_is_left_alone_and_answers_with_its_report(source: str, tmp_path: Path) -> None:
    first = quantize(source, str(tmp_path / "out"), CONFIG, RunConfig())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    again = quantize(source, str(tmp_path / "out"), CONFIG, RunConfig(workers=1))
    assert not first.already_finished
    assert again.already_finished
    assert again.report.to_dict() == first.report.to_dict()
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before


def test_another_config_is_refused_and_says_what_differs(source: str, tmp_path: Path) -> None:
    quantize(source, str(tmp_path / "out"), CONFIG, RunConfig())
    before = manifest_of(tmp_path / "out")
    with pytest.raises(TargetConflict, match=r"quant_type.*--overwrite"):
        quantize(source, str(tmp_path / "out"), QuantizationConfig("int4"), RunConfig())
    assert manifest_of(tmp_path / "out") == before


@pytest.fixture
def newer_code(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, this package is of other code."""
    return lambda: monkeypatch.setattr("arrowquant_dist.plan.make.code_digest", lambda: "0123456789abcdef")


def test_a_run_that_other_code_began_is_not_completed(
    source: str, tmp_path: Path, newer_code: Callable[[], None]
) -> None:
    target = str(tmp_path / "out")
    quantize(source, target, CONFIG, RunConfig())
    (tmp_path / "out" / "manifest.json").unlink()
    newer_code()
    for refused in (quantize, plan_only):
        with pytest.raises(TargetConflict, match="another version of this package's code; finish it with"):
            refused(source, target, CONFIG, RunConfig())


def test_what_other_code_has_finished_is_finished(
    source: str, tmp_path: Path, newer_code: Callable[[], None]
) -> None:
    target = str(tmp_path / "out")
    first = quantize(source, target, CONFIG, RunConfig())
    newer_code()
    again = quantize(source, target, CONFIG, RunConfig())
    assert again.already_finished
    assert again.report == first.report
    plan_only(source, target, CONFIG, RunConfig())
    with pytest.raises(TargetConflict, match="quant_type: was 'int8', is 'int4'"):
        quantize(source, target, CONFIG.replace(quant_type="int4"), RunConfig())


def test_a_manifest_of_another_plan_beside_this_plan_is_no_finished_dataset(
    source: str, tmp_path: Path
) -> None:
    quantize(source, str(tmp_path / "out"), CONFIG, RunConfig())
    path = tmp_path / "out" / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace(json.loads(text)["fingerprint"], "xxh3_128:" + "0" * 32))
    with pytest.raises(TargetConflict, match="another plan's dataset is here"):
        quantize(source, str(tmp_path / "out"), CONFIG, RunConfig())


def test_overwrite_replaces_the_dataset(source: str, tmp_path: Path) -> None:
    quantize(source, str(tmp_path / "out"), CONFIG, RunConfig())
    config = QuantizationConfig("int4", per_channel=False)
    quantize(source, str(tmp_path / "out"), config, RunConfig(overwrite=True))
    quantize(source, str(tmp_path / "new"), config, RunConfig())
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "new")
    parts = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out/weights").rglob("*.parquet")}
    assert parts == {part["path"] for part in manifest_of(tmp_path / "out")["parts"]}


def test_overwrite_with_a_bad_config_loses_nothing(source: str, tmp_path: Path) -> None:
    quantize(source, str(tmp_path / "out"), CONFIG, RunConfig())
    bad = QuantizationConfig("int4", overrides=[LayerOverride("no.such.*", quant_type="int8")])
    with pytest.raises(InvalidConfig, match="matches no layer"):
        quantize(source, str(tmp_path / "out"), bad, RunConfig(overwrite=True))
    assert weights_of(tmp_path / "out")


def test_a_target_with_foreign_files_is_refused_even_with_overwrite(source: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    for run in (RunConfig(), RunConfig(overwrite=True)):
        with pytest.raises(TargetConflict):
            quantize(source, str(tmp_path / "out"), CONFIG, run)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_dataset_is_never_its_own_source(source: str, tmp_path: Path) -> None:
    quantize(source, str(tmp_path / "out"), CONFIG, RunConfig())
    with pytest.raises(InvalidConfig, match="holds the source itself"):
        quantize(
            str(tmp_path / "out"),
            str(tmp_path / "out"),
            QuantizationConfig("int2"),
            RunConfig(overwrite=True),
        )
    assert weights_of(tmp_path / "out")


def test_a_bad_layer_publishes_nothing_and_the_rest_is_kept_for_the_resume(tmp_path: Path) -> None:
    weights = random_weights(8, 1024, 1024, torch.float32)
    good = weights["layers.5.weight"][0, 0].clone()
    weights["layers.5.weight"][0, 0] = torch.nan
    source = save_checkpoint(tmp_path / "source", weights)
    run = RunConfig(shard_bytes=4 << 20)
    with pytest.raises(UnquantizableWeights, match=r"'layers.5.weight'.*NaN at index \[0, 0\]"):
        quantize(source, str(tmp_path / "out"), CONFIG, run)
    assert not (tmp_path / "out/manifest.json").exists()
    assert len(list((tmp_path / "out/run/commits").iterdir())) > 3
    weights["layers.5.weight"][0, 0] = good
    save_checkpoint(tmp_path / "source", weights)  # another file: another plan
    with pytest.raises(TargetConflict, match="source"):
        quantize(source, str(tmp_path / "out"), CONFIG, run)


def test_a_dry_run_writes_nothing_and_sees_what_a_run_would_refuse(source: str, tmp_path: Path) -> None:
    plan = plan_only(source, str(tmp_path / "out"), CONFIG, RunConfig())
    assert len(list(plan.blocks)) == 8
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    with pytest.raises(TargetConflict):
        plan_only(source, str(tmp_path / "out"), CONFIG, RunConfig())


def test_the_quantizer_is_quantize_as_an_object(source: str, tmp_path: Path) -> None:
    report = ArrowQuantizer(CONFIG).quantize(source, str(tmp_path / "out"))
    assert report.totals.layers == 8


def test_sidecars_come_along(source: str, tmp_path: Path) -> None:
    (Path(source) / "config.json").write_text("{}")
    (Path(source) / "modeling_evil.py").write_text("raise SystemExit")
    quantize(source, str(tmp_path / "out"), CONFIG, RunConfig())
    assert (tmp_path / "out/config.json").read_text() == "{}"
    assert not (tmp_path / "out/modeling_evil.py").exists()


@pytest.mark.parametrize(
    ("files", "has_model"),
    [(["config.json"], False), (["tokenizer.json"], False), (["config.json", "vocab.txt"], True)],
)
def test_an_outcome_has_a_model_if_its_texts_can_be_read(
    files: list[str], source: str, tmp_path: Path, *, has_model: bool
) -> None:
    for name in files:
        (Path(source) / name).write_text("{}")
    assert quantize(source, str(tmp_path / "out"), CONFIG, RunConfig()).has_model == has_model


def test_memory_urls_work_from_end_to_end(source: str, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/driver/source/model.safetensors", (Path(source) / "model.safetensors").read_bytes())
    try:
        quantize("memory://driver/source", "memory://driver/out", CONFIG, RunConfig())
        memory.get("/driver/out", str(tmp_path / "copy"), recursive=True)
    finally:
        memory.rm("/driver", recursive=True)
    quantize(source, str(tmp_path / "out"), CONFIG, RunConfig())
    assert weights_of(tmp_path / "copy") == weights_of(tmp_path / "out")
