"""Models, datasets and texts that do not belong together or do not fit are refused in one sentence, and nothing is
written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, distill, machine
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.distillation import run as distillation_run
from arrowquant_dist.distillation.training import TrainingProgress
from arrowquant_dist.driver.outcome import Outcome
from arrowquant_dist.driver.trained import write_trained
from arrowquant_dist.errors import CorruptWeights, InvalidConfig, ModelMismatch, StorageError, TargetConflict
from arrowquant_dist.plan.trained import Trained
from arrowquant_dist.report.render import load_report
from arrowquant_dist.target.layout import Listing
from arrowquant_dist.target.target import Target
from arrowquant_dist.verify import verify
from tests.distillation.test_distill import FEW, INT2
from tests.evaluation.models import TEXTS, quantize, save_bert
from tests.servers.fixtures import Bucket


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def quantized(model: Path) -> Path:
    return quantize(model, model.parent / "quantized", INT2)


def test_a_model_of_other_shapes_or_values_is_refused(model: Path, quantized: Path, tmp_path: Path) -> None:
    wide = save_bert(tmp_path / "wide", intermediate_size=64)
    with pytest.raises(ModelMismatch, match="shape"):
        distill(wide, quantized, tmp_path / "out", TEXTS, settings=FEW)
    further = save_bert(tmp_path / "further")
    weights = load_file(further / "model.safetensors")
    name = "encoder.layer.1.output.LayerNorm.bias"
    weights[name] = weights[name] + 0.01
    save_file(weights, further / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelMismatch, match=f"not made from the weights of .*other values in {name}"):
        distill(further, quantized, tmp_path / "out", TEXTS, settings=FEW)
    assert not (tmp_path / "out").exists()


def test_a_target_that_is_damaged_or_unfinished_is_refused(model: Path, tmp_path: Path) -> None:
    target = quantize(model, tmp_path / "target", INT2)
    [part, *_] = (target / "weights").rglob("*.parquet")
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(CorruptWeights):
        distill(model, target, tmp_path / "out", TEXTS, settings=FEW)
    (target / "manifest.json").unlink()
    with pytest.raises(Exception, match="no finished dataset is there"):
        distill(model, target, tmp_path / "out", TEXTS, settings=FEW)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_more_than_the_memory_holds_is_refused_with_the_need(
    model: Path, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory_nbytes", lambda: 1 << 20)
    with pytest.raises(InvalidConfig, match=r"takes 2\.28 MiB of memory, .* no more than 1 MiB"):
        distill(model, quantized, tmp_path / "out", TEXTS, settings=FEW)
    assert not (tmp_path / "out").exists()


def test_one_that_died_while_it_wrote_goes_on_without_training_again(
    model: Path, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill(model, quantized, tmp_path / "undisturbed", TEXTS, settings=FEW)
    writing = write_trained

    def die(*_progress: object) -> None:
        raise StorageError("the disk is full")

    def dies(
        dataset: Target, checkpoint: Checkpoint, trained: Trained, run: RunConfig, found: Listing
    ) -> Outcome:
        return writing(dataset, checkpoint, trained, run, found, die)

    monkeypatch.setattr(distillation_run, "write_trained", dies)
    with pytest.raises(StorageError):
        distill(model, quantized, tmp_path / "out", TEXTS, settings=FEW)
    assert (tmp_path / "out" / "run" / "plan.arrow").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(distillation_run, "write_trained", writing)
    steps: list[int] = []

    def count(progress: TrainingProgress, _loss: float) -> None:
        steps.append(progress.step)

    distill(model, quantized, tmp_path / "out", TEXTS, settings=FEW, progress=count)
    assert steps == []
    one, other = (
        json.loads((tmp_path / name / "manifest.json").read_text())["parts"]
        for name in ("undisturbed", "out")
    )
    assert [part["hash"] for part in one] == [part["hash"] for part in other]
    assert not verify(tmp_path / "out").problems


def test_quantize_neither_repairs_nor_resumes_what_was_distilled(
    model: Path, quantized: Path, tmp_path: Path
) -> None:
    distill(model, quantized, tmp_path / "out", TEXTS, settings=FEW)
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    for run in (RunConfig(engine="inline", repair=True), RunConfig(engine="inline")):
        with pytest.raises(TargetConflict, match="holds what `distill` made, which `quantize` neither"):
            ArrowQuantizer(INT2, run).quantize(model, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


def test_nor_does_it_where_the_dataset_was_made_for_a_size(model: Path, tmp_path: Path) -> None:
    """The table that was chosen for it is in what was distilled, too."""
    config = QuantizationConfig(size="60kB")
    distill(model, quantize(model, tmp_path / "target", config), tmp_path / "out", TEXTS, settings=FEW)
    with pytest.raises(TargetConflict, match="holds what `distill` made, which `quantize` neither"):
        ArrowQuantizer(config).quantize(str(model), str(tmp_path / "out"))


def test_what_was_distilled_is_distilled_again(model: Path, quantized: Path, tmp_path: Path) -> None:
    first = distill(model, quantized, tmp_path / "once", TEXTS, settings=FEW)
    second = distill(model, tmp_path / "once", tmp_path / "twice", TEXTS, settings=FEW)
    assert second.losses[0] == pytest.approx(first.losses[first.best], rel=1e-5)
    assert second.losses[second.best] <= second.losses[0]
    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "twice" / "report" / "layers.parquet").to_pylist()
    reasons = {row["kept_reason"] for row in rows if row["kept_reason"]}
    assert not any("trained, trained" in reason for reason in reasons)
    assert any(reason.endswith(", trained") for reason in reasons)
    assert load_report(str(tmp_path / "twice")).notes


def test_out_may_be_in_a_bucket(model: Path, quantized: Path, tmp_path: Path, bucket: Bucket) -> None:
    options = bucket.storage_options
    found = distill(model, quantized, f"{bucket.uri}/out", TEXTS, settings=FEW, storage_options=options)
    distill(model, quantized, tmp_path / "out", TEXTS, settings=FEW)
    assert found.target == f"{bucket.uri}/out"
    there = json.loads(bucket.objects.get(f"{bucket.uri}/out/manifest.json"))["parts"]
    here = json.loads((tmp_path / "out" / "manifest.json").read_text())["parts"]
    assert [part["hash"] for part in there] == [part["hash"] for part in here]
