"""An evaluation in a dataset's report: next to others, gone with the dataset, and never in another one's report."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig
from arrowquant_dist.config import Storage
from arrowquant_dist.errors import InvalidCheckpoint, NotFound, TargetConflict
from arrowquant_dist.evaluation.publish import EvaluatedDataset
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.evaluations import load_evaluations
from arrowquant_dist.verify import verify
from tests.report.test_evaluations import of_embeddings
from tests.sources import random_weights, save_checkpoint

INT8 = QuantizationConfig("int8")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return quantized(tmp_path, INT8)


def quantized(tmp_path: Path, config: QuantizationConfig, **run: Any) -> Path:
    source = tmp_path / "source"
    if not source.exists():
        save_checkpoint(source, random_weights(1, 8, 16, torch.float32))
    ArrowQuantizer(config, RunConfig(engine="inline", **run)).quantize(source, tmp_path / "target")
    return tmp_path / "target"


def published(target: Path, found: Evaluation) -> Evaluation:
    place = EvaluatedDataset.of(target, Storage())
    own = replace(found, dataset=place.identity)
    place.publish(own)
    return own


def test_evaluations_with_other_texts_stay(target: Path) -> None:
    first, second = published(target, of_embeddings()), published(target, of_embeddings("law.txt"))
    assert load_evaluations(target) == (first, second)
    again = published(target, of_embeddings(cosine=0.1))
    assert load_evaluations(target) == (second, again)
    markdown = (target / "report" / "evaluation.md").read_text()
    assert "## law.txt" in markdown
    assert "mean 0.100000" in markdown
    assert markdown.count("## ") == 2


def test_the_dataset_stays_sound_and_finished(target: Path) -> None:
    published(target, of_embeddings())
    assert verify(target).is_sound
    assert quantized(target.parent, INT8) == target  # which says that it is finished
    assert len(load_evaluations(target)) == 1


def test_it_goes_with_the_dataset_that_it_is_of(target: Path) -> None:
    published(target, of_embeddings())
    quantized(target.parent, QuantizationConfig("int4"), overwrite=True)
    assert load_evaluations(target) == ()
    assert not (target / "report" / "evaluation.json").exists()
    assert not (target / "report" / "evaluation.md").exists()


def test_a_repair_keeps_it(target: Path) -> None:
    own = published(target, of_embeddings())
    part = next(target.rglob("part-*"))
    part.unlink()
    quantized(target.parent, INT8, repair=True)
    assert load_evaluations(target) == (own,)


def test_a_dataset_that_was_replaced_meanwhile_gets_none(target: Path) -> None:
    place = EvaluatedDataset.of(target, Storage())
    quantized(target.parent, QuantizationConfig("int4"), overwrite=True)
    with pytest.raises(TargetConflict, match="the dataset was replaced while it was evaluated"):
        place.publish(replace(of_embeddings(), dataset=place.identity))
    assert not (target / "report" / "evaluation.json").exists()
    shutil.rmtree(target)
    with pytest.raises(TargetConflict, match="replaced"):
        place.publish(of_embeddings())


def test_what_another_run_left_is_not_kept(target: Path) -> None:
    own = published(target, of_embeddings())
    path = target / "report" / "evaluation.json"
    values = json.loads(path.read_text())
    values["evaluations"][0]["dataset"] = "of a run before"
    path.write_text(json.dumps(values))
    assert load_evaluations(target) == ()
    other = published(target, of_embeddings("law.txt"))
    assert load_evaluations(target) == (other,)
    assert own.texts.name not in path.read_text()


def test_figures_are_told_where_they_cannot_be_written(target: Path) -> None:
    (target / "report" / "evaluation.md").mkdir()
    said = r"this is a folder, .*; it was measured all the same: embedding cosine mean 0\.93"
    with pytest.raises(NotFound, match=said):
        published(target, of_embeddings())


def test_evaluations_that_cannot_be_added_to_are_an_error_before_any_work(target: Path) -> None:
    (target / "report" / "evaluation.json").write_text("{")
    with pytest.raises(InvalidCheckpoint, match="the evaluations are damaged"):
        EvaluatedDataset.of(target, Storage())
