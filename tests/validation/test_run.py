"""validate(): the figures are those of the datasets' own reports and files, and what is left out is mentioned."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arrowquant_dist import QuantizationConfig, Validation, validate
from arrowquant_dist.config import LayerOverride
from arrowquant_dist.driver import Outcome, quantize
from arrowquant_dist.errors import InvalidConfig, NotFound, SourceChanged, StorageError, TargetConflict
from arrowquant_dist.texts.steps import TextsStep
from arrowquant_dist.validation.document import validation_document
from arrowquant_dist.validation.notes import notes_of
from arrowquant_dist.validation.tables import by_layer_type
from arrowquant_dist.validation.targets import read_targets
from tests.evaluation.models import TEXTS, save_llama
from tests.sources import random_weights, save_checkpoint
from tests.validation.conftest import CONFIGS, RUN
from tests.validation.tables import TABLES, rows

NO_LAYER = LayerOverride("*.nothing.weight", quant_type="int4")


def written(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "validation.json").read_text())
    return values


def test_figures_are_those_of_the_datasets_reports(found: Validation, out: Path) -> None:
    for one, said in zip(found.datasets, written(out)["datasets"], strict=True):
        report = json.loads((out / one.name / "report" / "report.json").read_text())
        assert one.report.to_dict() == {key: value for key, value in report.items() if key != "run_id"}
        for key in ("totals", "accuracy", "layer_types", "quant_types"):
            assert said[key] == report[key]
        parts = sum(path.stat().st_size for path in (out / one.name / "weights").rglob("*.parquet"))
        assert one.compression.parts_nbytes == one.memory.file_nbytes == parts
        assert one.compression.actual == report["totals"]["compression_vs_fp16"]
        assert one.speed.wall_seconds == report["timing"]["wall_seconds"]
        assert one.speed.worker_phases == report["timing"]["phases"]
        evaluation = json.loads((out / one.name / "report" / "evaluation.json").read_text())
        assert said["evaluation"] in evaluation["evaluations"]


def test_every_table_is_there_with_figures(found: Validation, out: Path) -> None:
    text, page = ((out / f"validation.{suffix}").read_text() for suffix in ("md", "html"))
    for title in TABLES:
        assert rows(text, title)
        assert title.replace("'", "&#39;") in page
    for note in found.notes:
        assert f"**{note.name}**" in text
        assert note.name in page
    assert {"size-of-the-source", "weight-cosine", "norms-are-kept", "layers", "loading"} <= {
        note.name for note in found.notes
    }


def test_times_that_hold_a_network_s_are_named(found: Validation) -> None:
    far = replace(found.source, uri="s3://models/bert")
    said = {note.name: note.text for note in notes_of(far, found.datasets, read_targets(None), found.v1_load)}
    assert "those of the source came over the network" in said["loading"]
    assert not any("over the network" in note.text for note in found.notes)


@pytest.mark.parametrize(("status", "words"), [("pass", "accepted"), ("fail", "not accepted")])
def test_the_first_card_says_whether_it_is_accepted(found: Validation, status: Any, words: str) -> None:
    judged = replace(found, criteria=tuple(replace(one, status=status) for one in found.criteria))
    assert validation_document(judged).cards[0].said == words


def test_the_json_is_what_is_returned(found: Validation, out: Path) -> None:
    assert written(out) == json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert written(out)["schema_version"] == 1


def test_the_theory_of_a_code_is_sixteen_bits_over_its_own(found: Validation) -> None:
    for one, theoretical in zip(found.datasets, (2.0, 8.0), strict=True):
        own = one.compression
        assert own.theoretical == theoretical
        assert own.actual is not None
        assert own.efficiency == pytest.approx(own.actual / theoretical)


def test_the_distribution_counts_every_quantized_layer_once(found: Validation) -> None:
    for one in found.datasets:
        cosines = [row.cosine for row in one.layers if row.is_quantized and row.cosine is not None]
        assert sum(each.layers for each in one.distribution) == len(cosines)
        for each in one.distribution:
            inside = [
                cosine for cosine in cosines if each.low <= cosine < each.high or cosine == each.high == 1
            ]
            assert len(inside) == each.layers
        assert 2 <= len(one.distribution) <= 40


def test_all_is_loaded_verified_and_kept(found: Validation) -> None:
    values = found.source.nbytes
    for one in found.datasets:
        assert one.load.verified
        assert one.load.decoded_nbytes == values
        assert one.load.seconds in one.load.runs
        for kept in (one.memory.decoded, one.memory.codes):
            assert kept is not None
            assert kept.peak_nbytes >= kept.kept_nbytes
    assert found.v1_load is not None
    assert not found.v1_load.verified
    assert found.v1_load.decoded_nbytes == values


def test_every_check_holds_and_names_its_config(found: Validation) -> None:
    assert [one for one in found.checks if one.status != "pass"] == []
    names = {one.name for one in found.checks if one.config}
    assert len(names) == 4
    for name in names:
        assert [one.config for one in found.checks if one.name == name] == CONFIGS


@pytest.mark.usefixtures("without_memory")
def test_a_source_without_a_model_is_validated_and_says_why_not_all(tmp_path: Path) -> None:
    import torch

    weights = random_weights(2, 64, 32, torch.float32)
    weights["embed.weight"] = torch.linspace(1, 2, 64 * 32).reshape(64, 32)  # which fp16 rounds
    source = save_checkpoint(tmp_path / "source", weights)
    targets = tmp_path / "targets.yaml"  # no times: a busy machine may take any
    targets.write_text("every: {weight_cosine: 0.9}")
    steps: list[TextsStep] = []
    found = validate(
        source,
        tmp_path / "out",
        {
            "mine": QuantizationConfig(
                "int4", per_channel=False, group_size=16, mixed_precision_layers=["embed"]
            )
        },
        targets=targets,
        run=RUN,
        progress=steps.append,
    )
    [one] = found.datasets
    assert one.evaluation is None
    assert "config.json" in one.no_evaluation
    page, text = ((tmp_path / "out" / f"validation.{suffix}").read_text() for suffix in ("html", "md"))
    assert "outputs-not-measured" in page
    assert "Not measured:" in text
    assert one.memory.reason == "this system does not report resident memory"
    assert one.memory.reason in page
    types = {row[0]: row[1:] for row in by_layer_type(found).rows}
    assert types["norm"] == ("mine", "2", "none", "kept", "none")
    assert types["embeddings"][:4] == ("mine", "1", "none", "fp16")
    assert 0 < float(str(types["embeddings"][4]).removesuffix(" %")) < 1e-4
    assert {own[2] for own in types.values()} == {"none", "2"}
    assert found.is_accepted
    assert {step.name for step in steps} >= {"mine: quantizing", "mine: verifying", "mine: as V1"}
    assert all(one != other for one, other in itertools.pairwise(steps))


@pytest.mark.usefixtures("without_memory")
def test_a_causal_model_is_judged_by_what_it_says_next(tmp_path: Path) -> None:
    targets = tmp_path / "targets.yaml"
    targets.write_text("every: {kl_divergence: 0.5, top1_agreement: 0.5}")
    source = save_llama(tmp_path / "source")
    found = validate(source, tmp_path / "out", CONFIGS, targets=targets, texts=TEXTS[:4], run=RUN)
    fine, far = found.datasets
    judged = {one.config: one.status for one in found.criteria if one.key == "kl_divergence"}
    assert judged == {"int8": "pass", "int2": "fail"}
    assert fine.evaluation is not None
    assert far.evaluation is not None
    assert far.evaluation.next_tokens is not None
    text = (tmp_path / "out" / "validation.md").read_text()
    assert f"{far.evaluation.next_tokens.kl_mean:.3g} nats (fail)" in text
    assert "int2: its outputs are too far off to rely on" in text


@pytest.mark.usefixtures("without_memory")
def test_finished_datasets_stay_and_their_times_are_called_theirs(
    found: Validation, bert: Path, out: Path
) -> None:
    again = validate(bert, out, ["int8"], texts=["One text.", "Another one."], run=RUN)
    [one] = again.datasets
    assert not one.speed.measured_now
    assert one.speed.wall_seconds == found.datasets[0].speed.wall_seconds
    assert "speed-of-an-earlier-run" in {note.name for note in again.notes}
    assert (out / "int2" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("configs", "reason"),
    [
        (["no-such-preset"], "no preset"),
        (["int8", "int8"], "two are called int8"),
        ([], "there are none"),
        (["./missing.yaml"], "does not exist"),
        ({"validation.json": QuantizationConfig("int8")}, "is the name of a file of the report"),
        (
            {"fine": QuantizationConfig("int8"), "odd": QuantizationConfig(overrides=[NO_LAYER])},
            r"config odd: overrides\[0\]\.layers: .* matches no layer",
        ),
    ],
)
def test_configs_that_are_none_are_refused_before_anything_is_written(
    bert: Path, tmp_path: Path, configs: Any, reason: str
) -> None:
    with pytest.raises(InvalidConfig, match=reason):
        validate(bert, tmp_path / "out", configs)
    assert not (tmp_path / "out").exists()


def test_an_error_of_a_plan_names_its_config_and_keeps_the_layer(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise InvalidConfig("has too many row blocks", layer="a.weight", uri="model.safetensors")

    monkeypatch.setattr("arrowquant_dist.validation.run.plan_only", refuse)
    with pytest.raises(InvalidConfig, match="config int8: has too many row blocks") as raised:
        validate(bert, tmp_path / "out", ["int8"])
    assert (raised.value.layer, raised.value.uri) == ("a.weight", "model.safetensors")


def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        validate(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def reports(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


@pytest.mark.usefixtures("without_memory")
def test_a_validation_that_fails_leaves_no_earlier_report_and_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    source, out = (
        save_checkpoint(tmp_path / "source", random_weights(1, 64, 32, torch.float32)),
        tmp_path / "out",
    )
    validate(source, out, ["int8"], run=RUN, progress=False)
    assert {*reports(out)} == {"validation.json", "validation.md", "validation.html"}

    def full(source: str, target: str, *rest: Any) -> Outcome:
        if target.endswith("int2"):
            raise StorageError("there is no space left", uri=target)
        return quantize(source, target, *rest)

    with monkeypatch.context() as faults:
        faults.setattr("arrowquant_dist.validation.run.quantize", full)
        with pytest.raises(StorageError):
            validate(source, out, CONFIGS, run=RUN, progress=False)
    assert reports(out) == {}
    found = validate(source, out, CONFIGS, run=RUN, progress=False)
    assert [one.speed.measured_now for one in found.datasets] == [False, True]
    assert written(out) == json.loads(json.dumps(found.to_dict()))


@pytest.mark.usefixtures("found")
def test_a_validation_that_is_refused_leaves_the_earlier_report(bert: Path, out: Path) -> None:
    before = reports(out)
    with pytest.raises(TargetConflict):
        validate(bert, out, {"int8": QuantizationConfig("int4")}, run=RUN)
    assert before
    assert reports(out) == before


@pytest.mark.usefixtures("ticks", "without_memory")
def test_a_source_that_changes_on_the_way_has_no_report(tmp_path: Path) -> None:
    import torch

    source = save_checkpoint(tmp_path / "source", random_weights(1, 64, 32, torch.float32))
    weights = Path(source) / "model.safetensors"
    changed = weights.read_bytes()[:-4] + b"\x00\x00\x00\x3f"  # 0.5 in the place of the last value

    def change(step: TextsStep) -> None:
        if step.name == "int2: as V1" and weights.read_bytes() != changed:
            weights.write_bytes(changed)

    with pytest.raises(SourceChanged, match="changed during the validation"):
        validate(source, tmp_path / "out", CONFIGS, run=RUN, progress=change)
    assert not (tmp_path / "out" / "validation.json").exists()


def test_a_config_called_source_does_not_take_the_source_s_place(tmp_path: Path) -> None:
    import torch

    source = save_checkpoint(tmp_path / "source", random_weights(1, 256, 512, torch.float32))
    found = validate(
        source, tmp_path / "out", {"source": QuantizationConfig("int8")}, run=RUN, progress=False
    )
    [one] = found.datasets
    assert found.source_memory.file_nbytes == found.source.file_nbytes
    assert one.memory.file_nbytes == one.compression.parts_nbytes
    assert found.source_memory.codes is None
    assert one.memory.codes is not None


def test_a_folder_with_other_files_is_refused(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(TargetConflict, match=r"thesis\.tex"):
        validate(bert, tmp_path, ["int8"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
