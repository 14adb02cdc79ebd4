"""An object store that stalls, truncates, refuses or returns wrong bytes: a stream is right, or ends with an error that
names the layer and the object."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrowquant_dist.errors import ArrowQuantError, CorruptWeights, CutObject, IncompleteDataset, StorageError
from arrowquant_dist.loader import WeightLoader
from tests.format.encoder import Row, kept_row
from tests.loader.test_stream import loader_threads
from tests.servers import range_server
from tests.servers.range_server import Answer, Asked, RangeServer
from tests.target.targets import make_target
from tests.waiting import until

RANGE_NBYTES = 64 << 10  # the least there is
LAYERS, RANGES = 6, 4  # and ranges that each layer takes
ROWS = RANGES * RANGE_NBYTES // 1024
# No repetitions, and a patience that no pause of the machine uses up.
TRANSFER = {"range_bytes": RANGE_NBYTES, "retries": 0, "backoff": 0.0, "request_timeout": 60.0, "hedges": 0}


def value(index: int) -> np.ndarray:
    return np.random.default_rng(index).standard_normal((ROWS, 256)).astype("<f4")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows: list[Row] = [kept_row(f"layer{i}", value(i), "float32") for i in range(LAYERS)]
    shards = [rows[i : i + 2] for i in range(0, LAYERS, 2)]
    return Path(make_target(tmp_path_factory.mktemp("remote") / "t", shards, compression="none"))


@pytest.fixture
def server(dataset: Path) -> Iterator[RangeServer]:
    with RangeServer() as server:
        server.put(dataset)
        yield server


def opened(server: RangeServer, **transfer: Any) -> WeightLoader:
    """Open, with the index read: what is asked for from now on are weights."""
    settings = {**TRANSFER, **transfer}
    loader = WeightLoader(f"{server.uri}/t", "4MiB", server.options, transfer=settings, workers=2)
    server.asked.clear()
    return loader


def layer_of(loader: WeightLoader, asked: Asked) -> str | None:
    """The layer that a range is of."""
    for index in range(LAYERS):
        [block] = loader._opened.dataset.layers[f"layer{index}"].blocks
        assert block.ranges is not None
        data, is_there = block.ranges.data, asked.path == f"t/{block.path}"
        if is_there and data.offset < asked.stop and asked.start < data.offset + data.nbytes:
            return f"layer{index}"
    return None


def part_of(loader: WeightLoader, layer: str) -> str:
    """The URI of its object."""
    [block] = loader._opened.dataset.layers[layer].blocks
    return f"{loader._settings.uri}/{block.path}"


def answers(server: RangeServer, loader: WeightLoader, layer: str, answer: Answer, times: int) -> None:
    """Gives `answer` to the first so many ranges of a layer, and right ones to all others."""
    left = [times]

    def choose(asked: Asked) -> Answer:
        with server.lock:
            if left[0] and layer_of(loader, asked) == layer:
                left[0] -= 1
                return answer
        return range_server.right

    server.answer = choose


def all_of(loader: WeightLoader, way: str = "for") -> dict[str, torch.Tensor]:
    async def collected() -> dict[str, torch.Tensor]:
        return {name: tensor async for name, tensor in loader.stream()}

    if way == "async for":
        return asyncio.run(collected())
    stream = loader.stream(order="arrival" if way == "arrival" else "given")
    if way == "borrowed":
        return {name: tensor.clone() for name, tensor in stream.borrowed()}
    return dict(stream)


def are_right(found: dict[str, torch.Tensor]) -> bool:
    every = range(LAYERS)
    return len(found) == LAYERS and all(
        np.array_equal(found[f"layer{index}"].numpy(), value(index)) for index in every
    )


WAYS = ["for", "arrival", "async for", "borrowed"]


@pytest.mark.parametrize("way", WAYS)
def test_a_second_request_answers_for_a_connection_that_stalls(server: RangeServer, way: str) -> None:
    """The time-out is a minute and nothing is repeated: the stream ends because the range was asked for twice."""
    with opened(server, hedges=1) as loader:
        answers(server, loader, "layer4", range_server.stalled, 1)
        assert are_right(all_of(loader, way))
        assert loader.stats.hedged >= 1
        asked = [one.start for one in server.asked if layer_of(loader, one) == "layer4"]
        assert max(map(asked.count, asked)) == 2
    until(lambda: not loader_threads())


def test_the_very_first_range_may_stall_before_anything_is_known_of_its_like(server: RangeServer) -> None:
    with opened(server, hedges=1, request_timeout=4.0) as loader:
        answers(server, loader, "layer0", range_server.stalled, 1)
        assert are_right(all_of(loader))
        assert loader.stats.hedged >= 1


@pytest.mark.parametrize("way", ["for", pytest.param("async for", marks=pytest.mark.slow)])
@pytest.mark.parametrize("answer", [range_server.stalled, range_server.silent])
def test_without_a_second_request_the_time_out_ends_it_and_names_the_layer(
    server: RangeServer, answer: Answer, way: str
) -> None:
    with opened(server, request_timeout=2.0) as loader:
        answers(server, loader, "layer4", answer, 1)
        with pytest.raises(StorageError, match=r"again.*raise transfer\.retries") as caught:
            all_of(loader, way)
    assert caught.value.layer == "layer4"
    assert caught.value.uri == part_of(loader, "layer4")
    assert "\n" not in str(caught.value)
    until(lambda: not loader_threads())


PASSING = {
    "stalled": range_server.stalled,
    "reset": range_server.reset,
    "cut": range_server.cut,
    "short": range_server.short,
    "less": range_server.less,
    "shifted": range_server.shifted,
    "503 SlowDown": range_server.slow_down,
}


@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_is_repeated_until_it_is_right(server: RangeServer, name: str) -> None:
    timeout = 2.0 if name == "stalled" else 60.0
    with opened(server, retries=3, request_timeout=timeout) as loader:
        answers(server, loader, "layer3", PASSING[name], 2)
        assert are_right(all_of(loader))
        of_layer = [one for one in server.asked if layer_of(loader, one) == "layer3"]
        assert len(of_layer) >= RANGES + 2
        assert loader._opened.dataset.transferred.retries >= 2


@pytest.mark.parametrize("name", [name for name in PASSING if name != "stalled"])
def test_what_does_not_pass_ends_the_stream_with_its_layer(server: RangeServer, name: str) -> None:
    with opened(server, retries=2) as loader:
        answers(server, loader, "layer3", PASSING[name], 1000)
        with pytest.raises(StorageError, match=r"raise transfer\.retries") as caught:
            all_of(loader)
        asked = [one.start for one in server.asked if layer_of(loader, one) == "layer3"]
    assert (caught.value.layer, caught.value.uri) == ("layer3", part_of(loader, "layer3"))
    assert max(map(asked.count, asked)) == 3


REFUSED: dict[str, tuple[Answer, type[ArrowQuantError], str]] = {
    "200 and everything": (range_server.entire, StorageError, "does not serve byte ranges"),
    "403": (range_server.denied, StorageError, "access denied"),
    "404": (range_server.gone, IncompleteDataset, "a part that the dataset needs is gone"),
    "another object": (range_server.replaced, StorageError, "replaced while it was read"),
    "a flipped bit": (range_server.flipped, CorruptWeights, "checksum"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_at_once(server: RangeServer, name: str, way: str) -> None:
    answer, kind, said = REFUSED[name]
    with opened(server, retries=5) as loader:
        loader.read("layer2", rows=slice(0, 1))  # of the same object, whose version is known then
        answers(server, loader, "layer3", answer, 1000 if name == "404" else 1)
        with pytest.raises(kind, match=said) as caught:
            all_of(loader, way)
        asked = [one.start for one in server.asked if layer_of(loader, one) == "layer3"]
    assert (caught.value.layer, caught.value.uri) == ("layer3", part_of(loader, "layer3"))
    assert "\n" not in str(caught.value)
    assert max(map(asked.count, asked)) == 1
    until(lambda: not loader_threads())


def test_an_object_that_was_cut_is_told_by_the_layer_that_is_not_there(server: RangeServer) -> None:
    seen: list[str] = []
    with opened(server, retries=5) as loader:
        [block] = loader.layer("layer4").blocks
        assert block.ranges is not None
        part = f"t/{block.path}"
        server.objects[part] = server.objects[part][: block.ranges.data.offset + 7]
        with pytest.raises(CutObject, match=r"the object ends \d+ bytes too early.*fetch it again") as caught:
            seen.extend(name for name, _ in loader)
    assert (caught.value.layer, caught.value.uri) == ("layer4", f"{server.uri}/{part}")
    assert seen == [f"layer{i}" for i in range(4)]


def test_a_body_that_comes_a_little_at_a_time_is_right(server: RangeServer) -> None:
    with opened(server) as loader:
        answers(server, loader, "layer3", range_server.dripping, 1000)
        assert are_right(all_of(loader))
        assert len([one for one in server.asked if layer_of(loader, one) == "layer3"]) == RANGES


def test_a_loader_that_is_closed_while_a_connection_stalls_leaves_no_thread(server: RangeServer) -> None:
    with opened(server) as loader:
        answers(server, loader, "layer0", range_server.stalled, 1)
        pairs = iter(loader)
        ended = threading.Event()

        def loop() -> None:
            with pytest.raises(ArrowQuantError):
                next(pairs)
            ended.set()

        thread = threading.Thread(target=loop)
        thread.start()
        server.stalls.acquire()
        closing = threading.Thread(target=loader.close)
        closing.start()
        server.let_go.set()
        closing.join()
        thread.join()
    assert ended.is_set()
    until(lambda: not loader_threads())
