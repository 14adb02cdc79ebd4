"""A loader in other processes: pickled, copied, forked, and among torch's DataLoader workers."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.loader import WeightLoader
from tests.conftest import CHECKOUT
from tests.format.encoder import kept_row, write_v2
from tests.servers.fixtures import Bucket

LAYERS = 24


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_v2(
        tmp_path / "w.parquet",
        [kept_row(f"layer{i}", np.full((64, 64), i, "<f4"), "float32") for i in range(LAYERS)],
    )


def _unpickled(loader: WeightLoader) -> WeightLoader:
    again: WeightLoader = pickle.loads(pickle.dumps(loader))  # noqa: S301
    return again


@pytest.mark.parametrize("copied", [_unpickled, copy.copy, copy.deepcopy])
def test_a_copy_opens_the_dataset_anew_with_the_same_settings(
    path: Path, copied: Callable[[WeightLoader], WeightLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    loader = WeightLoader(path.name, "3MiB", verify=False, dtype="float16", workers=2)
    iterating = iter(loader)
    next(iterating)
    monkeypatch.chdir("/")
    again = copied(loader)
    assert again is not loader
    assert [name for name, _ in again] == loader.keys()
    assert torch.equal(again["layer3"], torch.full((64, 64), 3.0, dtype=torch.float16))
    assert again._settings == loader._settings
    loader.close()
    assert again["layer1"][0, 0] == 1.0


def test_a_closed_loader_has_no_copies(path: Path) -> None:
    loader = WeightLoader(path)
    loader.close()
    with pytest.raises(InvalidConfig, match="this loader is closed"):
        pickle.dumps(loader)


def test_a_pickle_has_the_storage_options_and_nothing_shows_them(bucket: Bucket, path: Path) -> None:
    bucket.objects.put(f"{bucket.uri}/w.parquet", path.read_bytes())
    loader = WeightLoader(f"{bucket.uri}/w.parquet", storage_options=bucket.storage_options)
    again = _unpickled(loader)
    assert torch.equal(again["layer2"], loader["layer2"])
    secret = bucket.storage_options["secret"]
    for shown in (repr(again), str(again), again._repr_html_(), repr(again._settings)):
        assert secret not in shown
    assert repr(again) == (
        f"WeightLoader(uri='{bucket.uri}/w.parquet', layers={LAYERS}, memory_budget='2 GiB', "
        'gives="the source\'s dtypes", verify=True)'
    )


FORKED = """
import json, os, sys, threading, warnings
warnings.simplefilter("ignore")  # Python warns of a fork beside threads: that is what this is about
import torch
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.loader import WeightLoader

def forked_while(when, loader):
    iterating = iter(loader)
    if when != "idle":
        name, tensor = next(iterating)
    held, forked = threading.Event(), threading.Event()

    def hold():
        with loader._opened.budget.changed:
            held.set()
            forked.wait()

    if when == "locked":
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert float(loader["layer5"][1, 1]) == 5.0
            assert [float(tensor[0, 0]) for _, tensor in loader] == [float(i) for i in range(len(loader))]
            if when != "idle":
                try:
                    next(iterating)
                except InvalidConfig as error:
                    assert "start a new one in this process" in str(error), error
                else:
                    raise AssertionError("an iteration of another process went on")
            del iterating
            loader.close()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    forked.set()
    assert os.waitstatus_to_exitcode(status) == 0, when
    rest = [float(tensor[0, 0]) for _, tensor in iterating]
    assert rest == [float(i) for i in range(len(loader) - len(rest), len(loader))], rest
    return len(rest)

uri, options = sys.argv[1], json.loads(sys.argv[2])
for when in sys.argv[3:]:
    with WeightLoader(uri, storage_options=options, workers=2) as loader:
        print("FINE", when, forked_while(when, loader))
"""


def _fork(uri: str, options: dict[str, Any], *states: str) -> list[str]:
    """In one process, one after another: importing torch takes longer than all of it."""
    return _output([sys.executable, "-c", FORKED, uri, json.dumps(options), *states]).splitlines()


def _output(command: list[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=CHECKOUT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_forked_child_opens_anew_whatever_its_parent_is_doing(path: Path) -> None:
    """The child has none of the threads that read, and locks that they held stay shut."""
    said = _fork(str(path), {}, "idle", "iterating", "locked")
    assert said == [f"FINE idle {LAYERS}", f"FINE iterating {LAYERS - 1}", f"FINE locked {LAYERS - 1}"]


def test_a_forked_child_has_connections_of_its_own(bucket: Bucket, path: Path) -> None:
    bucket.objects.put(f"{bucket.uri}/w.parquet", path.read_bytes())
    said = _fork(f"{bucket.uri}/w.parquet", dict(bucket.storage_options), "iterating", "locked")
    assert said == [f"FINE iterating {LAYERS - 1}", f"FINE locked {LAYERS - 1}"]


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_torchs_data_loader_reads_in_its_workers(path: Path, method: str, workers: int) -> None:
    module = "tests.loader.data_loader_workers"
    read = _output([sys.executable, "-W", "error", "-m", module, str(path), method, str(workers)])
    assert json.loads(read) == [float(i) for i in range(LAYERS)]


def test_a_loader_is_of_the_process_that_opened_it(path: Path) -> None:
    assert WeightLoader(path)._opened.pid == os.getpid()
