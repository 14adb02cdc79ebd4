"""A calibration on Ray has the bytes of an undisturbed one, whatever happens to its actors, which stay for all
steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from arrowquant_dist import QuantizationConfig, RunConfig, calibrate
from arrowquant_dist.engine.ray import RayEngine
from arrowquant_dist.engine.ray.actor import Hello
from arrowquant_dist.engine.ray.crew import Crew, Seat
from tests.engine.ray.dying_actor import DyingActor
from tests.engine.ray.runs import MEMORY_NBYTES, QUICK
from tests.evaluation.models import TEXTS, save_llama


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.safetensors"))}


@pytest.mark.slow
def test_killed_actors_are_replaced_and_nothing_is_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run of two actors for all steps, of which two are killed: no more than four were there, and every byte
    is as of one thread."""
    source = save_llama(tmp_path / "source")
    config = QuantizationConfig("int4", per_channel=False, group_size=16)
    calibrate(
        source, tmp_path / "inline", [*TEXTS], quantize=config, run=RunConfig(engine="inline", workers=1)
    )
    engine = RayEngine(None, 2, MEMORY_NBYTES, QUICK, DyingActor)
    greeted: list[str] = []
    monkeypatch.setattr("arrowquant_dist.calibration.run.choose_engine", lambda *_: engine)
    own = Crew.welcome

    def welcome(self: Crew, seat: Seat, hello: Hello, now: float) -> None:
        greeted.append(hello.node)
        own(self, seat, hello, now)

    monkeypatch.setattr(Crew, "welcome", welcome)
    calibrate(source, tmp_path / "out", [*TEXTS], quantize=config)
    assert (tmp_path / "died before").exists()
    assert (tmp_path / "died after").exists()
    assert len(greeted) in {3, 4}  # the run may end before the second one that was killed is replaced
    assert contents(tmp_path / "out") == contents(tmp_path / "inline")
    assert len(contents(tmp_path / "out")) > 5
    assert not [path for path in (tmp_path / "out" / "run").rglob("*") if path.is_file()]
