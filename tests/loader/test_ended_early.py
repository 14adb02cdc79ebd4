"""However a stream ends, nothing of it is left: no thread, no open file, no bytes of the budget, no result."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from arrowquant_dist.arena import Slabs
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.loader import WeightLoader
from arrowquant_dist.loader.lent import Lender
from arrowquant_dist.loader.stream import WeightStream
from arrowquant_dist.storage.local import LocalStore
from tests.format.encoder import kept_row
from tests.loader.test_stream import loader_threads
from tests.servers.range_server import RangeServer
from tests.target.targets import make_target
from tests.waiting import interrupted, until

LAYERS, SHAPE = 16, (320, 256)  # large enough to be lent, and to be a piece of a slab


class _Stop(Exception):
    pass


def _stop(_done: int, _total: int, name: str) -> None:
    if name == "layer3":
        raise _Stop


def _broken(stream: WeightStream) -> None:
    for name, _ in stream:
        if name == "layer3":
            break


def _raising(stream: WeightStream) -> None:
    def consume() -> None:
        for name, _ in stream:
            if name == "layer3":
                raise _Stop

    with pytest.raises(_Stop):
        consume()


def _closed(stream: WeightStream) -> None:
    pairs = iter(stream)
    next(pairs)
    pairs.close()


def _thrown(stream: WeightStream) -> None:
    pairs = iter(stream)
    next(pairs)
    with pytest.raises(KeyboardInterrupt):
        pairs.throw(KeyboardInterrupt())


def _dropped(stream: WeightStream) -> None:
    cycle: list[Any] = [iter(stream)]
    next(cycle[0])
    cycle.append(cycle)
    del cycle
    gc.collect()


def _never_begun(stream: WeightStream) -> None:
    iter(stream)


async def _left(stream: WeightStream) -> None:
    async for name, _ in stream:
        if name == "layer3":
            return


async def _ended(stream: WeightStream) -> None:
    pairs = cast(AsyncGenerator[Any], aiter(stream))
    await anext(pairs)
    await pairs.aclose()


async def _raised(stream: WeightStream) -> None:
    async def consume() -> None:
        async for _ in stream:
            raise _Stop

    with pytest.raises(_Stop):
        await consume()


async def _cancelled(stream: WeightStream) -> None:
    begun = asyncio.Event()

    async def consume() -> None:
        async for _ in stream:
            begun.set()

    task = asyncio.create_task(consume())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


ENDS: dict[str, Callable[[WeightStream], object]] = {
    "break": _broken,
    "an exception in the loop": _raising,
    "close": _closed,
    "throw": _thrown,
    "dropped": _dropped,
    "never begun": _never_begun,
    "async: return": lambda stream: asyncio.run(_left(stream)),
    "async: aclose": lambda stream: asyncio.run(_ended(stream)),
    "async: an exception": lambda stream: asyncio.run(_raised(stream)),
    "async: cancelled": lambda stream: asyncio.run(_cancelled(stream)),
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [kept_row(f"layer{i}", np.full(SHAPE, i, "<f4"), "float32") for i in range(LAYERS)]
    shards = [rows[i : i + 2] for i in range(0, LAYERS, 2)]
    return Path(make_target(tmp_path_factory.mktemp("ended") / "t", shards, compression="none"))


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[np.ndarray]]:
    """What was taken for results."""
    taken: list[weakref.ref[np.ndarray]] = []
    for kind in (Slabs, Lender):
        plain = kind.take

        def take(self: Any, nbytes: int, plain: Any = plain) -> np.ndarray:
            memory: np.ndarray = plain(self, nbytes)
            taken.append(weakref.ref(memory))
            return memory

        monkeypatch.setattr(kind, "take", take)
    return taken


def open_files(target: Path) -> list[str]:
    """Its files that this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append(link.readlink())
        except OSError:  # that of this listing
            continue
    return sorted(str(path) for path in found if path.is_relative_to(target))


def nothing_is_left(loader: WeightLoader, results: list[weakref.ref[np.ndarray]]) -> None:
    until(lambda: not loader_threads())
    gc.collect()
    assert loader._opened.budget.used == 0
    assert not loader._opened.budget.streams
    assert [ref for ref in results if ref() is not None] == []


@pytest.mark.parametrize("kind", ["owned", "borrowed", "arrival"])
@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_left_of_a_stream_that_ends_early(
    target: Path, results: list[weakref.ref[np.ndarray]], end: str, kind: str
) -> None:
    with WeightLoader(target, "4MiB", workers=2) as loader:
        stream = loader.stream(order="arrival" if kind == "arrival" else "given")
        ENDS[end](stream.borrowed() if kind == "borrowed" else stream)
        nothing_is_left(loader, results)
        assert len(dict(loader)) == LAYERS
        assert open_files(target) != []
    assert open_files(target) == []


@pytest.mark.parametrize("end", ["break", "throw", "async: cancelled"])
def test_nothing_is_left_of_a_stream_from_an_object_store(
    target: Path, results: list[weakref.ref[np.ndarray]], end: str
) -> None:
    with RangeServer() as server:
        uri = server.put(target)
        with WeightLoader(uri, "4MiB", server.options) as loader:
            ENDS[end](loader.stream())
            nothing_is_left(loader, results)
            asked = len(server.asked)
            assert asked < 2 * LAYERS
            assert len(dict(loader)) == LAYERS


def test_what_progress_raises_leaves_nothing(target: Path, results: list[weakref.ref[np.ndarray]]) -> None:
    with WeightLoader(target, "4MiB") as loader:
        for stream in (loader.stream(progress=_stop), loader.stream(progress=_stop).borrowed()):
            with pytest.raises(_Stop):
                list(stream)
            nothing_is_left(loader, results)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """(begun, let go): the first layers that are read wait for the second event."""
    begun, let_go = threading.Event(), threading.Event()
    plain = LocalStore.read_pieces_into

    def read_pieces_into(store: LocalStore, *given: Any) -> None:
        begun.set()
        let_go.wait()
        plain(store, *given)

    monkeypatch.setattr(LocalStore, "read_pieces_into", read_pieces_into)
    yield begun, let_go
    let_go.set()


@pytest.mark.parametrize("borrows", [False, True])
def test_ctrl_c_while_a_layer_is_waited_for_leaves_nothing(
    target: Path,
    results: list[weakref.ref[np.ndarray]],
    held: tuple[threading.Event, threading.Event],
    borrows: bool,  # noqa: FBT001
) -> None:
    begun, let_go = held
    with WeightLoader(target, "4MiB", workers=2) as loader:
        stream = loader.stream().borrowed() if borrows else loader.stream()
        with pytest.raises(KeyboardInterrupt), interrupted(begun.is_set):
            next(iter(stream))
        let_go.set()
        nothing_is_left(loader, results)
        assert len(dict(loader)) == LAYERS


def test_a_loader_that_is_closed_in_the_midst_leaves_nothing(
    target: Path, results: list[weakref.ref[np.ndarray]]
) -> None:
    loader = WeightLoader(target, "4MiB", workers=2)
    pairs = [iter(loader), iter(loader.stream(order="arrival")), iter(loader.stream().borrowed())]
    for each in pairs:
        next(each)
    loader.close()
    assert not loader_threads()
    for each in pairs:
        with pytest.raises(InvalidConfig, match="closed"):
            next(each)
    del each, pairs
    nothing_is_left(loader, results)
    assert open_files(target) == []


def test_a_second_thread_cannot_break_into_a_loop(
    target: Path, held: tuple[threading.Event, threading.Event]
) -> None:
    """Python refuses it, and the loop goes on; a loop of its own is what the thread gets of the same stream."""
    begun, let_go = held
    with WeightLoader(target, workers=2) as loader:
        stream = loader.stream()
        pairs = iter(stream)
        seen: list[str] = []
        first = threading.Thread(target=lambda: seen.extend(name for name, _ in pairs))
        first.start()
        begun.wait()
        with pytest.raises(ValueError, match="already executing"):
            next(pairs)
        let_go.set()
        mine = [name for name, _ in stream]
        first.join()
    assert seen == mine == [f"layer{i}" for i in range(LAYERS)]


def test_threads_that_take_turns_share_a_loop(target: Path) -> None:
    with WeightLoader(target) as loader:
        pairs = iter(loader.stream().borrowed())
        lock = threading.Lock()
        seen: dict[str, float] = {}

        def take() -> None:
            while True:
                with lock:
                    pair = next(pairs, None)
                    if pair is None:
                        return
                    seen[pair[0]] = float(pair[1][0, 0])

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {f"layer{i}": float(i) for i in range(LAYERS)}
