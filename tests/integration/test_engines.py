"""Threads and Ray actors run the same workers, and give the same codes and scales, whatever dies meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig
from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.verify import verify
from tests.conftest import CHECKOUT
from tests.datasets import manifest_of, weights_of
from tests.integration.conftest import Targets
from tests.integration.program import commits, parts, run, write_checkpoint
from tests.processes import actor_processes
from tests.waiting import until

INT4 = QuantizationConfig("int4", per_channel=False, group_size=64, symmetric=False)
SIZES = RunConfig(block_bytes=1 << 20, shard_bytes=8 << 20, engine="inline")


@pytest.mark.parametrize("config", ["int8", pytest.param("int2-asymmetric", marks=pytest.mark.slow)])
def test_ray_from_the_command_line_gives_what_threads_give(
    targets: Targets, tmp_path: Path, config: str
) -> None:
    target = tmp_path / "ray"
    before = psutil.Process().children(recursive=True)  # servers of other tests
    file = CHECKOUT / "configs" / f"{config}.yaml"
    done = run("quantize", "minilm", target, "--config", file, "--engine", "ray", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert weights_of(target) == weights_of(targets[config])
    assert verify(str(target)).is_sound
    assert {*psutil.Process().children(recursive=True)} <= {*before}  # the Ray that it started ended with it


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(write_checkpoint(tmp_path / "source" / "model.safetensors", 12, 2048, 2048))


@pytest.fixture
def quiet(source: str, tmp_path: Path) -> Path:
    target = tmp_path / "quiet"
    ArrowQuantizer(INT4, SIZES).quantize(source, str(target))
    return target


class Killer(threading.Thread):
    """Kills one worker process of a running Ray after the first commit at the target."""

    def __init__(self, target: Path) -> None:
        super().__init__(daemon=True)
        self._target = target
        self.killed: int | None = None

    def run(self) -> None:
        until(lambda: commits(self._target))
        process = actor_processes()[0]
        process.kill()
        self.killed = process.pid


@pytest.mark.slow
def test_a_killed_actor_costs_nothing_but_time(source: str, quiet: Path, tmp_path: Path) -> None:
    target = tmp_path / "ray"
    killer = Killer(target)
    killer.start()
    ArrowQuantizer(INT4, SIZES.replace(engine="ray", workers=2)).quantize(source, str(target))
    killer.join()
    assert killer.killed is not None, "no actor was found to kill"
    assert weights_of(target) == weights_of(quiet)
    assert len(parts(target)) == len(manifest_of(target)["parts"])
    assert verify(str(target)).is_sound


@pytest.mark.slow
def test_a_bad_layer_is_the_same_error_from_an_actor(tmp_path: Path) -> None:
    source, target = tmp_path / "bad.safetensors", tmp_path / "target"
    weight = np.ones((64, 64), np.float32)
    weight[3, 5] = np.nan
    save_file({"good.weight": np.ones((64, 64), np.float32), "bad.weight": weight}, source)
    with pytest.raises(UnquantizableWeights, match=r"\[3, 5\]") as raised:
        ArrowQuantizer(INT4, RunConfig(engine="ray", workers=1)).quantize(str(source), str(target))
    assert raised.value.layer == "bad.weight"
    assert not (target / "manifest.json").exists()


@pytest.fixture(autouse=True)
def _no_ray_left() -> Iterator[None]:
    yield
    import ray

    assert not ray.is_initialized()
