"""A driver that is stopped at any change of its target, and goes on when another run has overwritten its own: not one
object of that run changes, and it ends with one clear sentence.

The changes of the driver's own thread are counted; its workers go on as they like.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.driver import Outcome, quantize
from arrowquant_dist.errors import TargetConflict
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.local import LocalStore
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.verify import verify
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
    return LocalStore if not target.startswith("memory:") else type(open_store(target))


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


def objects(target: str) -> dict[str, bytes]:
    store = open_store(target)
    return {info.path: store.read(info.path) for info in store.list()}


STOPS: dict[str, Callable[[int], Stop]] = {
    "before": partial(Stop, landed=False),
    "after": partial(Stop, landed=True),
    "before-and-dies": partial(Stop, landed=False, dies=True),
}


@pytest.mark.parametrize("how", STOPS)
@pytest.mark.parametrize("other", [CONFIG, OTHER], ids=["same-config", "other-config"])
@pytest.mark.parametrize("run", [RUN, OVERWRITING], ids=["plain", "overwriting"])
def test_a_driver_that_was_stopped_anywhere_changes_nothing_of_the_run_that_overwrote_its_own(
    source: str,
    target: str,
    run: RunConfig,
    other: QuantizationConfig,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = 0
    while True:
        here = f"{target}/{at}"
        if run.overwrite:
            quantize(source, here, QuantizationConfig("int8", symmetric=False), RUN)
        stop = STOPS[how](at)
        with monkeypatch.context() as patch:
            zombie = stopped(source, here, run, stop, patch)
            if zombie.ended:
                break
            last = stop.changes[-1]
            quantize(source, here, other, OVERWRITING)
            theirs = objects(here)
            ended = zombie.wakes()
        now = objects(here)
        assert {path: now.get(path) for path in theirs} == theirs, last
        assert all(path.startswith("run/kept-") and stop.dies for path in now.keys() - theirs.keys()), last
        assert verify(here).problems == (), last
        joins = other is CONFIG and how == "before" and last == "create run/plan.arrow"
        assert_said(ended, stop, joins=joins)
        if other is CONFIG:
            assert quantize(source, here, CONFIG, RUN).already_finished, last
        else:
            with pytest.raises(TargetConflict, match="another plan's run"):
                quantize(source, here, CONFIG, RUN)
        at += 1
    assert at >= (14 if run.overwrite else 7)


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
