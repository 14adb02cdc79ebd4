"""An export on Ray has the files of an undisturbed one, each once, whatever happens to its workers."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
import torch

from arrowquant_dist import RunConfig
from arrowquant_dist.engine.progress import Progress
from arrowquant_dist.engine.ray import RayEngine
from arrowquant_dist.export import ExportOptions, export_dataset
from tests.engine.ray.held_actor import HeldActorOfExports
from tests.engine.ray.runs import MEMORY_NBYTES, QUICK
from tests.export.datasets import made_dataset
from tests.held_worker import begun, held, hold_at
from tests.processes import is_alive
from tests.sources import random_weights
from tests.waiting import until

OPTIONS = ExportOptions(max_file_bytes="1MiB")


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_worker_killed_in_the_midst_of_a_file_leaves_every_file_once_and_equal_to_the_inline_export_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = made_dataset(tmp_path, random_weights(12, 256, 512, torch.float32))
    export_dataset(dataset, tmp_path / "inline", OPTIONS, RunConfig(engine="inline", workers=1))
    out, events = tmp_path / "out", list[Progress]()
    engine = RayEngine(None, 2, MEMORY_NBYTES, QUICK, HeldActorOfExports)
    monkeypatch.setattr("arrowquant_dist.export.run.choose_engine", lambda *_: engine)
    hold_at(str(out), 2)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(export_dataset, dataset, out, OPTIONS, RunConfig(), progress=events.append)
        try:
            until(lambda: len({*held(str(out))}) == 2 or running.done())
            killed = held(str(out))[0]
            os.kill(killed, signal.SIGKILL)
            until(lambda: not is_alive(killed))
            assert [*out.glob(".*")], "nothing of an unfinished file was there"
            hold_at(str(out), sys.maxsize)
            result = running.result()
        finally:
            if not running.done():
                ray.shutdown()
    assert contents(out) == contents(tmp_path / "inline")
    files = [file.path for file in result.record.files if file.path.startswith("model-0")]
    attempts = Counter(begun(str(out)))
    assert len(files) == len({*files}) == len(attempts) > 4
    assert sorted(attempts.values()) == [1] * (len(files) - 1) + [2]
    last = events[-1]
    assert (last.done_nbytes, last.done_layers) == (last.total_nbytes, last.total_layers)
    assert last.total_layers == 24
