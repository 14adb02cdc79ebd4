"""Several workers of Ray Train come to what one process comes to, also where one of them is killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from arrowquant_dist import Distilled, RunConfig, WeightLoader, distill
from arrowquant_dist.distillation.training import TrainingProgress
from arrowquant_dist.engine.ray.cluster import connect
from arrowquant_dist.errors import PartialRun
from arrowquant_dist.verify import verify
from tests.distillation.test_distill import FEW, INT2
from tests.evaluation.models import TEXTS, quantize, save_bert

SETTINGS = replace(FEW, save_every=5)
WORKER = "ray::RayTrainWorker"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    quantize(save_bert(folder / "model"), folder / "quantized", INT2)
    return folder


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    """One Ray for all tests: two seconds each less, and it is still there afterwards."""
    connect(None, 2)
    yield
    assert ray.is_initialized()
    ray.shutdown()


def trained(
    place: Path, out: str, run: RunConfig, told: Callable[[TrainingProgress, float], None]
) -> Distilled:
    places = place / "model", place / "quantized", place / out, TEXTS
    return distill(*places, settings=SETTINGS, memory_budget="64MiB", run=run, progress=told)


class Killer:
    """Kills a worker when the driver hears of this step the first time."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.heard: list[int] = []

    def __call__(self, progress: TrainingProgress, _loss: float) -> None:
        self.heard.append(progress.step)
        if self.heard.count(self._step) == 1 and progress.step == self._step:
            processes = psutil.Process().children(recursive=True)
            next(each for each in processes if each.name().startswith(WORKER)).kill()


def codes_of(target: Path) -> dict[str, Any]:
    with WeightLoader(target, dequantize=False) as loader:
        return {name: layer.codes for name, layer in loader if hasattr(layer, "codes")}


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_two_workers_make_the_training_of_one_though_one_of_them_is_killed(place: Path) -> None:
    """All begin again from the last checkpoint, of step 5 or 10, and come to the losses of one process."""
    alone = trained(place, "alone", RunConfig(), lambda *_: None)
    killer = Killer(12)
    found = trained(place, "together", RunConfig(workers=2), killer)
    assert found.losses.keys() == alone.losses.keys()
    assert found.losses[0] == pytest.approx(alone.losses[0], rel=1e-6)
    for step, loss in found.losses.items():
        assert loss == pytest.approx(
            alone.losses[step], rel=0.01
        )  # Adam makes steps of gradients that are rounding
    assert (found.matrices, found.vectors, found.steps) == (alone.matrices, alone.vectors, 20)
    again = killer.heard.index(20) - 20 + 1  # steps that were made twice
    assert again > 0
    assert sorted({*killer.heard}) == [*range(1, 21)]
    assert not verify(place / "together").problems
    assert not (place / "together" / "run" / "distillation").exists()
    one, other = codes_of(place / "alone"), codes_of(place / "together")
    differ = [
        np.unpackbits(one[name] ^ other[name]).reshape(-1, 2).any(1).mean() for name in one
    ]  # of 2 bits each
    assert np.mean(differ) < 0.1


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_workers_that_die_too_often_are_one_error_and_what_they_saved_is_gone_on_from(place: Path) -> None:
    with pytest.raises(
        PartialRun, match=r"workers of the training died 1 time, the last one was number [01]"
    ):
        trained(place, "out", RunConfig(workers=2, shard_attempts=1), Killer(12))
    assert not (place / "out" / "manifest.json").exists()
    state = json.loads((place / "out" / "run" / "distillation" / "state.json").read_text())
    heard: list[int] = []
    found = trained(place, "out", RunConfig(), lambda progress, _: heard.append(progress.step))
    assert heard == [*range(state["numbers"]["step"] + 1, 21)]
    assert state["numbers"]["step"] >= 10
    assert found.losses[found.best] < 0.95 * found.losses[0]
    assert not verify(place / "out").problems
