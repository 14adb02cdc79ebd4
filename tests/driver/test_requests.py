"""The driver makes a handful of requests to the target and one per commit, however large the model is."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.driver import plan_only, quantize
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.commit import READERS
from tests.sources import random_weights, save_checkpoint
from tests.waiting import until

CONFIG = QuantizationConfig()
RUN = RunConfig(workers=2, shard_bytes=64 << 10, engine="inline")
ENOUGH_READS = READERS // 2
ASKED = ("list", "read", "info", "create", "write", "delete", "begun_uploads", "open_writer", "read_into")


class Requests:
    """Counts `method folder` of a kind of store, but those of workers; keeps how many reads were under way at most."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.most_reads = self._reads = 0
        self._lock = threading.Lock()

    def watch(self, monkeypatch: pytest.MonkeyPatch, kind: type[Store]) -> None:
        for name in ASKED:
            monkeypatch.setattr(kind, name, self._counted(name, getattr(kind, name)))

    def _counted(self, name: str, own: Any) -> Any:
        def counted(store: Store, *arguments: Any) -> Any:
            if threading.current_thread().name.startswith("worker") or (name, arguments) == ("delete", ([],)):
                return own(store, *arguments)
            with self._lock:
                path = str(arguments[0]) if arguments else ""
                self.counts[f"{name} {path.rpartition('/')[0] or path}"] += 1
                self._reads += name == "read"
                self.most_reads = max(self.most_reads, self._reads)
            if name == "read" and "commits" in path:
                until(lambda: self.most_reads >= ENOUGH_READS)  # a commit that is read alone waits for others
            try:
                return own(store, *arguments)
            finally:
                with self._lock:
                    self._reads -= name == "read"

        return counted


@pytest.fixture
def source(tmp_path: Path) -> str:
    source = save_checkpoint(tmp_path / "source", random_weights(40, 64, 256, torch.float32))
    (Path(source) / "config.json").write_text("{}")
    return source


@pytest.fixture
def target() -> Iterator[str]:
    name = f"/requests-{uuid.uuid4().hex}"
    yield f"memory:/{name}"
    fs = fsspec.filesystem("memory")
    for path in fs.find(name):
        fs.rm_file(path)


@pytest.fixture
def requests(target: str, monkeypatch: pytest.MonkeyPatch) -> Requests:
    requests = Requests()
    requests.watch(monkeypatch, type(open_store(target)))
    return requests


def shards(source: str, target: str) -> int:
    return len(plan_only(source, target, CONFIG, RUN).shards)


def test_a_run_lists_twice_and_reads_each_commit_once(source: str, target: str, requests: Requests) -> None:
    count = shards(source, target)
    assert count >= 32
    requests.counts.clear()
    quantize(source, target, CONFIG, RUN)
    assert requests.counts == {
        "list ": 2,  # before and after the engine
        "create run": 1,  # the plan
        "read run/commits": count,
        "read manifest.json": 1,  # nobody else's is there
        "read run": 2,  # the plan, before and after the manifest: the run was not overwritten
        "create index.parquet": 1,
        "create config.json": 1,
        "create report": 4,
        "create manifest.json": 1,
        "begun_uploads weights": 1,
    }
    assert requests.most_reads >= ENOUGH_READS


def test_a_resume_reads_each_commit_once_too(
    source: str, target: str, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(source, target, CONFIG, RUN)
    count = shards(source, target)
    commits = [info.path for info in open_store(target).list("run/commits")]
    open_store(target).delete(["manifest.json", *commits[::2]])
    requests.counts.clear()
    quantize(source, target, CONFIG, RUN)
    assert requests.counts["list "] == 2
    assert requests.counts["read run/commits"] == count


def test_a_resume_that_has_only_to_publish_lists_once(source: str, target: str, requests: Requests) -> None:
    quantize(source, target, CONFIG, RUN)
    count = shards(source, target)
    open_store(target).delete(["manifest.json"])
    requests.counts.clear()
    quantize(source, target, CONFIG, RUN)
    assert requests.counts["list "] == 1
    assert requests.counts["read run/commits"] == count


def test_a_finished_target_is_asked_a_few_things(source: str, target: str, requests: Requests) -> None:
    quantize(source, target, CONFIG, RUN)
    requests.counts.clear()
    assert quantize(source, target, CONFIG, RUN).already_finished
    assert requests.counts == {
        "list ": 1,
        "read manifest.json": 2,
        "read run": 2,  # whose plan it is, before and after what is at the target was listed
        "read report": 1,
        "begun_uploads weights": 1,
    }


def test_a_dry_run_lists_once(source: str, target: str, requests: Requests) -> None:
    plan_only(source, target, CONFIG, RUN)
    assert requests.counts == {"list ": 1}
