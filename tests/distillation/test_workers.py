"""Several workers of Ray Train get the same result as one process, even if one of them is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from arrowquant_dist import Distilled, RunConfig, WeightLoader, distill
from arrowquant_dist.distillation import run as distillation_run
from arrowquant_dist.distillation.training import TrainingProgress
from arrowquant_dist.distillation.workers import DistillWork
from arrowquant_dist.engine.ray.cluster import connect
from arrowquant_dist.engine.training import Tell
from arrowquant_dist.errors import PartialRun
from arrowquant_dist.verify import verify
from tests.distillation.test_distill import FEW, INT2
from tests.evaluation.models import TEXTS, quantize, save_bert

SETTINGS = replace(FEW, save_every=5)


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


class DyingWork(DistillWork):
    """Its first worker is killed at its twelfth step, the first time that there is one at this target."""

    def run(self, number: int, count: int, cpus: int, tell: Tell) -> None:
        mark = Path(f"{self.places.out}-died")

        def told(note: tuple[Mapping[str, Any], float]) -> None:
            if note[0]["step"] == 12 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            tell(note)

        super().run(number, count, cpus, told)


@pytest.fixture(autouse=True)
def _dying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation_run, "DistillWork", DyingWork)


def codes_of(target: Path) -> dict[str, Any]:
    with WeightLoader(target, dequantize=False) as loader:
        return {name: layer.codes for name, layer in loader if hasattr(layer, "codes")}


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_two_workers_make_the_training_of_one_though_one_of_them_is_killed(place: Path) -> None:
    """All begin again from the last checkpoint, of step 10, and come to the losses of one process."""
    alone = trained(place, "alone", RunConfig(), lambda *_: None)
    heard: list[int] = []
    found = trained(place, "together", RunConfig(workers=2), lambda progress, _: heard.append(progress.step))
    assert found.losses.keys() == alone.losses.keys()
    assert found.losses[0] == pytest.approx(alone.losses[0], rel=1e-6)
    for step, loss in found.losses.items():
        assert loss == pytest.approx(
            alone.losses[step], rel=0.01
        )  # Adam makes steps of gradients that are rounding
    assert (found.matrices, found.vectors, found.steps) == (alone.matrices, alone.vectors, 20)
    assert heard[-10:] == [*range(11, 21)]
    assert heard[:-10] == [*range(1, len(heard) - 9)]  # the last notes may have died with who wrote them
    assert len(heard) <= 21
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
    with pytest.raises(PartialRun, match="workers of the training died 1 time, the last one was number 0"):
        trained(place, "out", RunConfig(workers=2, shard_attempts=1), lambda *_: None)
    assert not (place / "out" / "manifest.json").exists()
    state = json.loads((place / "out" / "run" / "distillation" / "state.json").read_text())
    heard: list[int] = []
    found = trained(place, "out", RunConfig(), lambda progress, _: heard.append(progress.step))
    assert state["numbers"]["step"] == 10
    assert heard == [*range(11, 21)]
    assert found.losses[found.best] < 0.95 * found.losses[0]
    assert not verify(place / "out").problems
