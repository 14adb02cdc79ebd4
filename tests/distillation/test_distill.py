"""A trained dataset gets closer to the original's outputs, and has the values that the student computed with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrowquant_dist import (
    Distilled,
    DistillSettings,
    QuantizationConfig,
    RunConfig,
    WeightLoader,
    distill,
    evaluate,
)
from arrowquant_dist.config import Storage
from arrowquant_dist.distillation import training
from arrowquant_dist.distillation.checkpoint import TrainingState, TrainingStates
from arrowquant_dist.distillation.losses import loss_of
from arrowquant_dist.distillation.settings import Rates
from arrowquant_dist.distillation.teaching import Judge, held_back
from arrowquant_dist.distillation.training import TrainingProgress, mean_loss
from arrowquant_dist.driver.trained import write_trained
from arrowquant_dist.errors import (
    CorruptWeights,
    InvalidConfig,
    NotFound,
    TargetConflict,
    UnquantizableWeights,
)
from arrowquant_dist.models.kinds import kind_of_model
from arrowquant_dist.models.outputs import Reader
from arrowquant_dist.models.pair import filled_model, opened_dataset, opened_model
from arrowquant_dist.report.render import load_report
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.verify import verify
from tests.evaluation.models import TEXTS, quantize, save_bert, save_llama, save_sentence_model

INT2 = QuantizationConfig("int2", per_channel=False, group_size=16, symmetric=False)
FAST = Rates(offsets=0.006, scales=0.003, zero_points=0.006, vectors=0.001, rows=0.012)
FEW = DistillSettings(steps=20, batch_tokens=256, every=10, rates=FAST)
SAVED = {"bert": save_bert, "llama": save_llama, "sentences": save_sentence_model}


def trained(folder: Path, kind: str = "bert", config: QuantizationConfig = INT2, **run: Any) -> Distilled:
    model = SAVED[kind](folder / "model")
    quantize(model, folder / "quantized", config, **run)
    own = RunConfig(engine="inline", **run)
    return distill(model, folder / "quantized", folder / "trained", TEXTS, settings=FEW, run=own)


def loss_of_dataset(model: Path, target: Path, folder: Path) -> float:
    """Of the texts that FEW holds back, of the model as anyone fills it from the dataset."""
    storage = Storage({})
    with (
        opened_model(model, storage, 1 << 30) as original,
        opened_dataset(target, storage, 1 << 30) as dataset,
    ):
        kind = kind_of_model(original.files)
        teacher, reader = (
            Reader(kind, filled_model(kind, original.files, side.source, None).model)
            for side in (original, dataset)
        )
        made = teacher.tokenized(original.files, [*TEXTS], FEW.longest)
        judge = Judge(teacher, made.only(held_back(len(TEXTS))[1]), FEW.batch_tokens, 0, folder)
        return mean_loss(reader, judge, {})


@pytest.mark.parametrize("kind", SAVED)
def test_the_loss_falls_and_is_that_of_what_was_written(kind: str, tmp_path: Path) -> None:
    found = trained(tmp_path, kind)
    assert found.losses[found.best] < 0.95 * found.losses[0]
    for name, step in (("quantized", 0), ("trained", found.best)):
        loss = loss_of_dataset(tmp_path / "model", tmp_path / name, tmp_path)
        assert loss == pytest.approx(found.losses[step], rel=1e-5)
    compared = evaluate(tmp_path / "model", tmp_path / "trained", TEXTS)
    assert not [note for note in compared.notes if "not made from these weights" in note]


FORMS = {
    "per tensor": QuantizationConfig("int8", per_channel=False, group_size=0),
    "per channel": QuantizationConfig("int4", symmetric=True),
    "short last groups": QuantizationConfig("int3", per_channel=False, group_size=20, symmetric=False),
    "whole zero points": QuantizationConfig(
        "int4", per_channel=False, group_size=16, symmetric=False, integer_zero_points=True
    ),
    "bfloat16 scales": QuantizationConfig("int2", per_channel=False, group_size=16, scale_dtype="bfloat16"),
    "kept embeddings": QuantizationConfig("int2", mixed_precision_layers=["embeddings"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_codes_stays_what_it_is(form: str, tmp_path: Path) -> None:
    found = trained(tmp_path, "bert", FORMS[form], block_bytes=64 << 10)
    assert not verify(tmp_path / "trained").problems
    loss = loss_of_dataset(tmp_path / "model", tmp_path / "trained", tmp_path)
    assert loss == pytest.approx(found.losses[found.best], rel=1e-4)
    with (
        WeightLoader(tmp_path / "quantized", dequantize=False) as old,
        WeightLoader(tmp_path / "trained", dequantize=False) as new,
    ):
        assert {*old.keys()} == {*new.keys()}
        for name in old.keys():  # noqa: SIM118 - a loader gives pairs
            before, after = old[name], new[name]
            for key in ("shape", "dtype", "quant_type", "quant_axis", "group_size"):
                assert getattr(before, key) == getattr(after, key)
            assert before.zero_points.size == after.zero_points.size
            if form == "whole zero points":
                assert np.array_equal(after.zero_points, np.rint(after.zero_points))
            if form == "bfloat16 scales":
                scales = torch.from_numpy(after.scales)
                assert torch.equal(scales, scales.bfloat16().float())
            if form == "kept embeddings" and "embeddings" in name and len(before.shape) == 2:
                assert np.array_equal(before.codes, after.codes)


def test_errors_are_those_against_the_original(tmp_path: Path) -> None:
    trained(tmp_path)
    report = load_report(str(tmp_path / "trained"))
    with WeightLoader(tmp_path / "trained") as loader:
        values = {name: tensor.double() for name, tensor in loader}
    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "trained" / "report" / "layers.parquet").to_pylist()
    from safetensors.torch import load_file

    original = load_file(tmp_path / "model" / "model.safetensors")
    assert {row["method"] for row in rows} == {"distilled", "none"}
    for row in rows:
        name = row["layer_name"]
        error = (values[name] - original[name].double()).square().mean()
        assert row["mse"] == pytest.approx(float(error), rel=1e-6)
    assert any("trained by distill with 25 texts" in note for note in report.notes)


def test_what_another_process_finishes_meanwhile_is_what_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written_by_two(*given: Any) -> None:
        write_trained(*given)
        raise TargetConflict("the run was overwritten by another one", uri="out")

    monkeypatch.setattr("arrowquant_dist.distillation.run.write_trained", written_by_two)
    found = trained(tmp_path)
    assert found.already_finished
    assert found.losses[0] > 0
    assert not [*(tmp_path / "trained" / "run" / "distillation").glob("*")]


def test_the_same_call_again_is_done_and_another_one_is_refused(tmp_path: Path) -> None:
    first = trained(tmp_path)
    again = distill(tmp_path / "model", tmp_path / "quantized", tmp_path / "trained", TEXTS, settings=FEW)
    assert again.already_finished
    assert again.losses == first.losses
    with pytest.raises(TargetConflict, match=r"another distillation \(its texts differ\)"):
        distill(tmp_path / "model", tmp_path / "quantized", tmp_path / "trained", TEXTS[:24], settings=FEW)


def test_equal_seeds_make_equal_datasets(tmp_path: Path) -> None:
    trained(tmp_path)
    distill(tmp_path / "model", tmp_path / "quantized", tmp_path / "again", TEXTS, settings=FEW)
    one, other = (
        json.loads((tmp_path / name / "manifest.json").read_text())["parts"] for name in ("trained", "again")
    )
    assert [part["hash"] for part in one] == [part["hash"] for part in other]


def test_what_cannot_be_trained_is_refused_before_any_training(tmp_path: Path) -> None:
    model = save_bert(tmp_path / "model")
    quantize(model, tmp_path / "kept")
    with pytest.raises(InvalidConfig, match="no layer whose codes could be trained"):
        distill(model, tmp_path / "kept", tmp_path / "out", TEXTS)
    for wrong in ({"settings": 3}, {"run": 3}):
        with pytest.raises(InvalidConfig, match=r"must be a \w+, not the number 3"):
            distill("minilm", tmp_path / "t", tmp_path / "out", TEXTS, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match="19 texts, too few"):
        distill(model, tmp_path / "kept", tmp_path / "out", TEXTS[:19])
    with pytest.raises(InvalidConfig, match="choose another OUT"):
        distill(model, tmp_path / "kept", tmp_path / "kept", TEXTS)
    with pytest.raises(NotFound, match="no finished dataset"):
        distill(model, tmp_path / "nothing", tmp_path / "out", TEXTS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other.txt").write_text("somebody's")
    with pytest.raises(TargetConflict, match=r"other files"):
        distill(model, tmp_path / "kept", tmp_path / "out", TEXTS)


def test_looks_without_a_gain_end_a_training_after_its_first_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.5, *(0.6 + 0.01 * look for look in range(20))])
    monkeypatch.setattr(training, "mean_loss", lambda *_: next(losses))
    model = save_bert(tmp_path / "model")
    quantize(model, tmp_path / "quantized", INT2)
    settings = replace(FEW, every=2, patience=2)
    found = distill(model, tmp_path / "quantized", tmp_path / "trained", TEXTS, settings=settings)
    assert (found.steps, found.best) == (12, 0)  # of 20: the looks at 10 and 12 count


class Stopped(Exception):
    """By the test."""


def test_a_training_that_was_stopped_goes_on_from_its_checkpoint_to_the_same_dataset(tmp_path: Path) -> None:
    trained(tmp_path)
    steps: list[int] = []

    def stop(progress: TrainingProgress, _loss: float) -> None:
        steps.append(progress.step)
        if progress.step == 15 and len(steps) == 15:
            raise Stopped

    settings = replace(FEW, save_every=10)
    place = tmp_path / "model", tmp_path / "quantized", tmp_path / "again", TEXTS
    with pytest.raises(Stopped):
        distill(*place, settings=settings, progress=stop)
    with pytest.raises(TargetConflict, match="the state of another training"):
        distill(*place, settings=replace(settings, seed=1))
    with pytest.raises(TargetConflict, match="other files"):
        quantize(tmp_path / "model", tmp_path / "again")
    distill(*place, settings=settings, progress=stop)
    assert steps == [*range(1, 16), *range(11, 21)]
    one, other = (
        json.loads((tmp_path / name / "manifest.json").read_text())["parts"] for name in ("trained", "again")
    )
    assert [part["hash"] for part in one] == [part["hash"] for part in other]
    assert not (tmp_path / "again" / "run" / "distillation").exists()
    assert not verify(tmp_path / "again").problems


def test_a_state_that_is_damaged_is_refused(tmp_path: Path) -> None:
    states = TrainingStates(open_store(str(tmp_path)), {"texts": "these"})
    states.save(TrainingState({"step": 3}, {"a": torch.arange(5.0), "b": torch.tensor(2)}))
    found = states.load()
    assert found is not None
    assert found.numbers == {"step": 3}
    assert torch.equal(found.tensors["a"], torch.arange(5.0))
    assert found.tensors["b"].shape == ()
    assert TrainingStates(states.store, {"texts": "others"}).load() is None
    [path] = (tmp_path / "run" / "distillation").glob("*.bin")
    data = bytearray(path.read_bytes())
    data[2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptWeights, match="state of the training is damaged"):
        states.load()


@pytest.mark.parametrize("moment", ["open_writer", "write"])
def test_of_two_runs_that_save_at_the_same_moment_one_has_its_state_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """moment: of what one run calls before which the other saves."""
    one, other = (TrainingStates(open_store(str(tmp_path)), {"texts": "these"}) for _ in range(2))
    first, second = (TrainingState({"step": step}, {"a": torch.full((4,), step)}) for step in (1, 2))
    other.save(first)
    own = getattr(one.store, moment)

    def beaten(*args: Any) -> Any:
        other.save(second)
        return own(*args)

    monkeypatch.setattr(one.store, moment, beaten)
    one.save(first)
    monkeypatch.undo()
    found = other.load()
    assert found is not None
    assert found.numbers == {"step": 1}
    one.save(second)
    assert len([path for path in one.paths() if path.endswith(".bin")]) <= 2
    one.delete()
    assert one.paths() == []


def test_a_loss_that_is_no_number_stops_and_leaves_no_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "loss_of", lambda *_a, **_k: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(UnquantizableWeights, match="the loss is not a number after 0 steps"):
        trained(tmp_path)
    assert not (tmp_path / "trained" / "manifest.json").exists()


def test_a_loss_that_becomes_no_number_ends_the_training_with_the_best_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = loss_of

    def wrong_after_12(progress: TrainingProgress, _loss: float) -> None:
        if progress.step == 12:
            lost = torch.tensor(float("nan"), requires_grad=True)
            monkeypatch.setattr(training, "loss_of", lambda *_a, **_k: lost)

    model = save_bert(tmp_path / "model")
    quantize(model, tmp_path / "quantized", INT2)
    place = model, tmp_path / "quantized", tmp_path / "trained", TEXTS
    found = distill(*place, settings=FEW, progress=wrong_after_12)
    assert (found.failed_at, found.best, found.steps) == (12, 10, 12)
    monkeypatch.setattr(training, "loss_of", right)
    loss = loss_of_dataset(model, tmp_path / "trained", tmp_path)
    assert loss == pytest.approx(found.losses[10], rel=1e-5)
    notes = load_report(str(tmp_path / "trained")).notes
    assert any("the loss was not a number after 12 steps, where it ended" in note for note in notes)
