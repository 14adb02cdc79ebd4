"""A driver that is stopped at any change of its target, and goes on after another run has overwritten its own, changes
no object of that run, and ends with one clear sentence.

Only changes by the driver's own thread are counted; its workers are not stopped.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.driver import Outcome, plan_only, quantize
from arrowquant_dist.errors import IncompleteDataset, InvalidCheckpoint, TargetConflict
from arrowquant_dist.report.render import load_report
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.local import LocalStore
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.remote import RemoteStore
from arrowquant_dist.target.manifest import Manifest
from arrowquant_dist.target.target import Target
from arrowquant_dist.verify import verify
from tests.datasets import copy_target
from tests.servers.fixtures import Bucket
from tests.sources import random_weights, save_checkpoint

CONFIG, OTHER = QuantizationConfig(), QuantizationConfig("int4")
RUN = RunConfig(workers=1, shard_bytes=64 << 10, engine="inline")
OVERWRITING = RUN.replace(overwrite=True)
CHANGES = ("create", "write", "delete", "delete_unchanged", "abandon")


class Killed(BaseException):
    """What no handler is prepared for, as none is for SIGKILL."""


@dataclass
class Stop:
    """Where a driver stands still: at its k-th change, until it may go on.

    landed: after the change and not before it. dies: once it is awake and that change has landed.
    """

    at: int
    landed: bool
    dies: bool = False
    changes: list[str] = field(default_factory=list)
    reached: threading.Event = field(default_factory=threading.Event)
    awake: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def __call__(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def stopping(store: Store, paths: Any, *data: bytes) -> Any:
            if threading.current_thread() is not self.thread or (
                name not in ("create", "write") and not paths
            ):
                return own(store, paths, *data)
            self.changes.append(f"{name} {paths}")
            is_here = len(self.changes) == self.at + 1
            if is_here and not self.landed:
                self._sleep()
            result = own(store, paths, *data)
            if is_here and self.landed:
                self._sleep()
            if is_here and self.dies:
                raise Killed
            return result

        return stopping

    def _sleep(self) -> None:
        self.reached.set()
        self.awake.wait()


@dataclass
class Zombie:
    """A driver in a thread of its own."""

    stop: Stop
    thread: threading.Thread
    ended: list[Outcome | BaseException] = field(default_factory=list)

    def wakes(self) -> Outcome | BaseException:
        self.stop.awake.set()
        self.thread.join()
        return self.ended[0]


@pytest.fixture
def source(tmp_path: Path) -> str:
    source = save_checkpoint(tmp_path / "source", random_weights(1, 16, 64, torch.float32))
    (Path(source) / "config.json").write_text('{"a": 1}')
    return source


@pytest.fixture(params=["local", "memory"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    name = f"/zombies-{uuid.uuid4().hex}"
    yield str(tmp_path / "out") if request.param == "local" else f"memory:/{name}"
    fs = fsspec.filesystem("memory")
    for path in fs.find(name):
        fs.rm_file(path)


def store_type(target: str) -> type[Store]:
    return RemoteStore if "://" in target else LocalStore


def stopped(source: str, target: str, run: RunConfig, stop: Stop, monkeypatch: pytest.MonkeyPatch) -> Zombie:
    """The driver when it stands still, or has ended."""

    def drive() -> None:
        try:
            zombie.ended.append(quantize(source, target, CONFIG, run))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test looks at it
            zombie.ended.append(error)
        finally:
            stop.reached.set()

    stop.thread = threading.Thread(target=drive)
    zombie = Zombie(stop, stop.thread)
    for name in CHANGES:
        monkeypatch.setattr(store_type(target), name, stop(name, getattr(store_type(target), name)))
    zombie.thread.start()
    stop.reached.wait()
    return zombie


def objects(target: str, storage: Storage = DEFAULT_STORAGE) -> dict[str, bytes]:
    store = open_store(target, storage)
    return {info.path: store.read(info.path) for info in store.list()}


STOPS: dict[str, Callable[[int], Stop]] = {
    "before": partial(Stop, landed=False),
    "after": partial(Stop, landed=True),
    "before-and-dies": partial(Stop, landed=False, dies=True),
}


@dataclass(frozen=True)
class Schedules:
    """A driver that is stopped at each of its changes in turn, a run that overwrites its own, and what then is."""

    source: str
    target: str
    run: RunConfig
    other: QuantizationConfig
    how: str
    storage: Storage = DEFAULT_STORAGE

    @property
    def _plain(self) -> RunConfig:
        return self.run.replace(overwrite=False)

    def check(self, monkeypatch: pytest.MonkeyPatch) -> int:
        """How many changes there are."""
        if self.run.overwrite:
            quantize(
                self.source, f"{self.target}/before", QuantizationConfig("int8", symmetric=False), self._plain
            )
        at = 0
        while self._check_one(at, monkeypatch):
            at += 1
        return at

    def _check_one(self, at: int, monkeypatch: pytest.MonkeyPatch) -> bool:
        here, stop = f"{self.target}/{at}", STOPS[self.how](at)
        if self.run.overwrite:
            copy_target(f"{self.target}/before", here, self.storage)
        with monkeypatch.context() as patch:
            zombie = stopped(self.source, here, self.run, stop, patch)
            if zombie.ended:
                return False
            last = stop.changes[-1]
            quantize(self.source, here, self.other, self.run.replace(overwrite=True))
            theirs = objects(here, self.storage)
            ended = zombie.wakes()
        now = objects(here, self.storage)
        assert {path: now.get(path) for path in theirs} == theirs, last
        assert all(path.startswith("run/kept-") and stop.dies for path in now.keys() - theirs.keys()), last
        assert verify(here, self.storage).problems == (), last
        is_same = self.other is CONFIG
        joins = is_same and self.how == "before" and last == "create run/plan.arrow"
        assert_said(ended, stop, joins=joins)
        if is_same:
            assert quantize(self.source, here, CONFIG, self._plain).already_finished, last
        else:
            with pytest.raises(TargetConflict, match="another plan's run"):
                quantize(self.source, here, CONFIG, self._plain)
        return True


# Each run in each place, and with each other run in each way. What these leave out of the product is marked slow.
QUICK = {
    "plain-memory-same-before",
    "plain-memory-other-after",
    "plain-memory-same-before-and-dies",
    "plain-local-same-after",
    "overwriting-memory-other-before",
    "overwriting-memory-same-after",
    "overwriting-memory-other-before-and-dies",
    "overwriting-local-same-before",
}


def schedules() -> Iterator[Any]:
    places = [
        *product(["memory"], (CONFIG, OTHER), STOPS),
        *product(["local"], [CONFIG], ["before", "after"]),
    ]
    for run, (place, other, how) in product((RUN, OVERWRITING), places):
        kind, same = "overwriting" if run.overwrite else "plain", "same" if other is CONFIG else "other"
        name = f"{kind}-{place}-{same}-{how}"
        yield pytest.param(run, place, other, how, id=name, marks=[] if name in QUICK else [pytest.mark.slow])


@pytest.mark.parametrize(("run", "target", "other", "how"), [*schedules()], indirect=["target"])
def test_a_driver_that_was_stopped_anywhere_changes_nothing_of_the_run_that_overwrote_its_own(
    source: str,
    target: str,
    run: RunConfig,
    other: QuantizationConfig,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = Schedules(source, target, run, other, how).check(monkeypatch)
    assert changes >= (14 if run.overwrite else 7)


@pytest.mark.parametrize(
    "run", [RUN, pytest.param(OVERWRITING, marks=pytest.mark.slow)], ids=["plain", "overwriting"]
)
def test_nor_does_it_on_an_object_store(
    source: str, bucket: Bucket, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There what is copied from the source is the same object for all runs; with its conditions S3 tells all else."""
    storage = Storage(bucket.storage_options)
    run = run.replace(storage_options=bucket.storage_options)
    schedules = Schedules(source, f"{bucket.uri}/t", run, CONFIG, "before", storage)
    assert schedules.check(monkeypatch) >= (14 if run.overwrite else 7)


def assert_said(ended: Outcome | BaseException, stop: Stop, *, joins: bool) -> None:
    """joins: it had begun nothing yet, and found a run of its own plan, which had finished."""
    if stop.dies:
        assert isinstance(ended, Killed), ended
    elif joins:
        assert isinstance(ended, Outcome), ended
        assert ended.already_finished
    else:
        assert isinstance(ended, TargetConflict), ended
        assert "\n" not in str(ended)
        assert len(str(ended)) < 400


def dies_at(path: str, source: str, target: str, run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run, up to its creation of that object."""
    create = store_type(target).create

    def dying(store: Store, at: str, data: bytes) -> bool:
        if at == path:
            raise Killed
        return create(store, at, data)

    with monkeypatch.context() as patch:
        patch.setattr(store_type(target), "create", dying)
        with pytest.raises(Killed):
            quantize(source, target, CONFIG, run)


def stops_of(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The changes of an undisturbed run, in their order."""
    stop = Stop(at=1_000, landed=False)
    with monkeypatch.context() as patch:
        stopped(source, target, RUN, stop, patch).thread.join()
    return stop.changes


def test_the_manifest_of_a_driver_that_died_is_no_dataset_and_gives_way_to_the_run_whose_plan_counts(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It slept before its manifest, created it when another run was at work, and died before it looked again."""
    last = stops_of(source, f"{target}/quiet", monkeypatch).index("create manifest.json")
    here = f"{target}/here"
    with monkeypatch.context() as patch:
        zombie = stopped(source, here, RUN, Stop(last, landed=False, dies=True), patch)
        dies_at("index.parquet", source, here, OVERWRITING, patch)
        assert isinstance(zombie.wakes(), Killed)
    assert open_store(here).exists("manifest.json")
    with pytest.raises(IncompleteDataset, match="gone"):
        Dataset.open(here)
    with pytest.raises(IncompleteDataset, match="parts that are gone"):
        load_report(here)
    assert any("the manifest is from an earlier one" in problem.message for problem in verify(here).problems)
    with pytest.raises(TargetConflict, match="another plan's run"):
        quantize(source, here, OTHER, RUN)
    outcome = quantize(source, here, CONFIG, RUN)
    assert not outcome.already_finished
    assert outcome.report.run.resumed_shards != ()
    assert verify(here).problems == ()
    assert load_report(here) == outcome.report
    assert Manifest.read(open_store(here)).run == Target.open(here).current().name
    assert quantize(source, here, CONFIG, RUN).already_finished


def test_an_index_and_a_report_that_a_sleeper_creates_late_get_names_of_their_own_beside_them(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its index and the first file of its report land when the other run has cleared the target, and not published."""
    changes = stops_of(source, f"{target}/quiet", monkeypatch)
    here = f"{target}/here"
    with monkeypatch.context() as patch:
        zombie = stopped(source, here, RUN, Stop(changes.index("create index.parquet"), landed=False), patch)
        dies_at("index.parquet", source, here, OVERWRITING, patch)
        dies_at("manifest.json", source, f"{target}/other", RUN, patch)
        for name in ("report/report.json", "report/report.md"):
            open_store(here).create(name, open_store(f"{target}/other").read(name))
        assert isinstance(zombie.wakes(), TargetConflict)
    outcome = quantize(source, here, CONFIG, RUN)
    manifest = Manifest.read(open_store(here))
    run = str(manifest.run)
    assert [file.path for file in manifest.report] == [
        f"report/{run}/report.json",
        f"report/{run}/report.md",
        "report/report.html",
        "report/layers.parquet",
    ]
    assert load_report(here) == outcome.report
    assert verify(here).problems == ()
    open_store(here).write(f"report/{run}/report.json", open_store(here).read("report/report.json"))
    with pytest.raises(InvalidCheckpoint, match="not the report that the manifest names"):
        load_report(here)
    assert [problem.kind for problem in verify(here).problems] == ["corrupt-weights"]
    quantize(source, here, CONFIG, OVERWRITING)
    assert verify(here).problems == ()
    assert not any(run in path for path in objects(here))


def test_parts_and_commits_without_a_plan_are_known_by_their_names_and_cleared(
    source: str, target: str
) -> None:
    """As an overwriting run leaves them that was killed when the old one's workers were still at it."""
    store = open_store(target)

    def leave() -> None:
        store.delete(["run/plan.arrow", "manifest.json"])

    quantize(source, target, OTHER, RUN)
    leave()
    for run in (RUN, RUN.replace(workers=2)):
        with pytest.raises(TargetConflict, match=r"a run without its plan.*--overwrite to clear") as raised:
            quantize(source, target, CONFIG, run)
        assert "\n" not in str(raised.value)
    with pytest.raises(TargetConflict, match="--overwrite to clear"):
        plan_only(source, target, CONFIG, RUN)
    plan_only(source, target, CONFIG, OVERWRITING)
    quantize(source, target, CONFIG, OVERWRITING)
    assert verify(target).problems == ()
    assert len(store.list("weights")) == len(store.list("run/commits"))
    leave()
    store.delete([info.path for info in store.list("weights")])
    store.delete([info.path for info in store.list("run/commits")])
    quantize(source, target, CONFIG, OVERWRITING)  # index, report and a copied file are what is left
    assert verify(target).problems == ()
    leave()
    store.write("thesis.tex", b"mine")
    before = objects(target)
    for run in (RUN, OVERWRITING):
        with pytest.raises(TargetConflict, match=r"files that are not a run's|other files"):
            quantize(source, target, CONFIG, run)
    assert objects(target) == before


@pytest.mark.parametrize(
    "path",
    [
        "weights/shard=00000/part-00000-c3fa-4a1e.snappy.parquet",
        "weights/shard=00000/part-0.parquet",
        "index.parquet",
        "report/report.md",
        "run/commits/notes.json",
    ],
)
def test_what_others_may_have_named_so_is_not_taken_for_what_a_run_left(
    source: str, target: str, path: str
) -> None:
    open_store(target).write(path, b"PAR1 of somebody else")
    with pytest.raises(TargetConflict, match="nothing was deleted"):
        quantize(source, target, CONFIG, OVERWRITING)
    assert objects(target) == {path: b"PAR1 of somebody else"}
