"""Streams: which layers they give, in what order, to whom, and what ends them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.pieces import Piece
from arrowquant_dist.dataset.prefetch import THREAD_NAME
from arrowquant_dist.errors import CorruptWeights, InvalidConfig, UnknownLayer
from arrowquant_dist.loader import WeightLoader
from arrowquant_dist.tensor import QuantizedTensor
from tests.format.encoder import Row, kept_row, write_v2
from tests.target.targets import make_target
from tests.waiting import until

LAYERS = [f"model.layers.{i}.{part}" for i in range(12) for part in ("up.weight", "down.weight", "norm")]


def numbered(names: list[str]) -> list[Row]:
    return [kept_row(name, np.full((4, 6), i, "<f4"), "float32") for i, name in enumerate(names)]


@pytest.fixture
def loader(tmp_path: Path) -> WeightLoader:
    return WeightLoader(write_v2(tmp_path / "w.parquet", numbered(LAYERS)), workers=2)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (None, LAYERS),
        ("model.layers.3.norm", ["model.layers.3.norm"]),
        ("*.norm", [name for name in LAYERS if name.endswith("norm")]),
        (["model.layers.7.norm", "model.layers.2.*"], ["model.layers.7.norm", *LAYERS[6:9]]),
        (["*.1?.norm", "*.norm"], [LAYERS[32], LAYERS[35], *LAYERS[2:31:3]]),
        (["model.layers.[01].up.weight", LAYERS[0]], [LAYERS[0], LAYERS[3]]),
        ((name for name in reversed(LAYERS)), LAYERS[::-1]),
        ([], []),
    ],
)
def test_names_globs_and_lists_come_in_the_order_given(
    loader: WeightLoader, names: Any, found: list[str]
) -> None:
    stream = loader.stream(names)
    assert stream.names == found
    assert len(stream) == len(found)
    for _ in range(2):  # each loop reads anew
        pairs = [*stream]
        assert [name for name, _ in pairs] == found
        assert all(tensor.tolist() == [[LAYERS.index(name)] * 6] * 4 for name, tensor in pairs)


def test_a_name_with_the_signs_of_a_glob_is_that_name(tmp_path: Path) -> None:
    loader = WeightLoader(write_v2(tmp_path / "w.parquet", numbered(["a[0]", "a0", "a*"])))
    assert loader.stream("a[0]").names == ["a[0]"]
    assert loader.stream("a*").names == ["a*"]
    assert loader.stream("a?*").names == ["a[0]", "a0", "a*"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("model.layers.3.nrm", "the dataset has no such layer; did you mean model.layers.3.norm"),
        (["*.norm", "model.layers.3.nrm*"], "the glob matches none .*did you mean model.layers.3.norm"),
        ("Model.Layers.1.*", "the glob matches none"),
        (["zzz", "*.qq"], r"no such layer \(the same is true of \*\.qq\); it has 36 others"),
    ],
)
def test_what_matches_nothing_gets_the_nearest_names(loader: WeightLoader, names: Any, said: str) -> None:
    with pytest.raises(UnknownLayer, match=said):
        loader.stream(names)


@pytest.mark.parametrize("names", [3, [3], [None], b"w", [b"w"]])
def test_names_are_texts(loader: WeightLoader, names: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"names and globs have to be strings, not .*loader\.keys\(\)"):
        loader.stream(names)


def test_another_order_is_refused(loader: WeightLoader) -> None:
    with pytest.raises(InvalidConfig, match="order"):
        loader.stream(order="random")


def test_tied_names_of_a_list_are_tensors_of_their_own(tmp_path: Path) -> None:
    make_target(tmp_path / "t", [numbered(["embed", "w"])], aliases={"head": "embed"})
    loader = WeightLoader(tmp_path / "t")
    for names in (["head", "embed", "w"], ["head", "w", "embed"]):
        found = dict(loader.stream(names))
        assert [*found] == names
        found["head"].fill_(5)
        assert found["embed"].tolist() == [[0.0] * 6] * 4


class Held:
    """Makes the reading of some layers wait until they are let go of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *layers: str) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()
        plain: Callable[..., QuantizedTensor] = Dataset.read_piece

        def read_piece(dataset: Dataset, piece: Piece, **options: Any) -> QuantizedTensor:
            if piece.block.header.layer_name in layers:
                self.begun.set()
                self.let_go.wait()
            return plain(dataset, piece, **options)

        monkeypatch.setattr(Dataset, "read_piece", read_piece)


def test_by_arrival_a_slow_layer_holds_up_none_of_those_read_ahead(
    loader: WeightLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch, LAYERS[0])
    pairs = iter(loader.stream(order="arrival"))
    early = [next(pairs)[0] for _ in range(7)]  # as many as are read ahead beside it
    assert LAYERS[0] not in early
    held.let_go.set()
    rest = [name for name, _ in pairs]
    assert sorted([*early, *rest]) == sorted(LAYERS)


def test_by_arrival_values_are_those_of_their_names(loader: WeightLoader) -> None:
    for name, tensor in loader.stream("*.norm", order="arrival"):
        assert tensor[0, 0] == LAYERS.index(name)


def test_by_arrival_within_a_budget_for_one_layer(tmp_path: Path) -> None:
    path = write_v2(tmp_path / "w.parquet", numbered(LAYERS))
    loader = WeightLoader(path, memory_budget=4 * 4 * 6 * 6)
    assert sorted(name for name, _ in loader.stream(order="arrival")) == sorted(LAYERS)
    assert loader.stats.peak_nbytes <= 4 * 4 * 6 * 6


def test_a_loop_that_waits_for_an_arrival_ends_when_the_loader_is_closed(
    loader: WeightLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch, *LAYERS)
    errors: list[Exception] = []

    def loop() -> None:
        try:
            next(iter(loader.stream(order="arrival")))
        except InvalidConfig as error:
            errors.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    held.begun.wait()
    closing = threading.Thread(target=loader.close)
    closing.start()
    thread.join()
    held.let_go.set()
    closing.join()
    assert "closed" in str(errors[0])


def test_parts_are_streamed_as_they_are_read(loader: WeightLoader) -> None:
    for name, tensor in loader.stream("*.norm", rows=slice(1, 3), columns=slice(0, 2)):
        assert tensor.tolist() == [[LAYERS.index(name)] * 2] * 2


def test_progress_is_told_of_each_layer_and_ends_with_all_bytes(loader: WeightLoader) -> None:
    told: list[tuple[int, int, str]] = []
    names = ["*.norm", LAYERS[0]]
    for name, _ in loader.stream(names, rows=slice(0, 2), progress=lambda *said: told.append(said)):
        assert told[-1][2] == name  # before the pair is the caller's
    assert [name for _, _, name in told] == loader.stream(names).names
    assert [done for done, _, _ in told] == [2 * 6 * 4 * (i + 1) for i in range(13)]
    assert {total for _, total, _ in told} == {13 * 2 * 6 * 4}


def test_progress_of_codes_ends_with_all_bytes(loader: WeightLoader, tmp_path: Path) -> None:
    codes = WeightLoader(tmp_path / "w.parquet", dequantize=False)
    told: list[tuple[int, int, str]] = []
    assert len([*codes.stream(progress=lambda *said: told.append(said))]) == len(LAYERS)
    assert told[-1][:2] == (36 * 96, 36 * 96)


def test_what_progress_raises_ends_the_loop(loader: WeightLoader) -> None:
    def stop(_done: int, _total: int, name: str) -> None:
        if name == LAYERS[3]:
            raise KeyboardInterrupt

    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(name for name, _ in loader.stream(progress=stop))
    assert seen == LAYERS[:3]
    until(lambda: not loader_threads())


# async for


def test_async_for_gives_the_same_pairs(loader: WeightLoader) -> None:
    async def collect(order: str) -> dict[str, torch.Tensor]:
        return {name: tensor async for name, tensor in loader.stream("*.weight", order=order)}

    plain = dict(loader.stream("*.weight"))
    given, arrived = asyncio.run(collect("given")), asyncio.run(collect("arrival"))
    assert [*given] == [*plain]
    assert arrived.keys() == plain.keys()
    assert all(torch.equal(given[name], plain[name]) for name in plain)
    until(lambda: not loader_threads())


def test_the_event_loop_goes_on_while_a_layer_is_read(
    loader: WeightLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lets the layer be read is done by the loop itself: were it blocked, this would never end."""
    held = Held(monkeypatch, LAYERS[0])

    async def release() -> None:
        while not held.begun.is_set():
            await asyncio.sleep(0)
        held.let_go.set()

    async def both() -> list[str]:
        releasing = asyncio.create_task(release())
        names = [name async for name, _ in loader.stream()]
        await releasing
        return names

    assert asyncio.run(both()) == LAYERS


def test_a_cancelled_task_ends_the_threads(loader: WeightLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch, LAYERS[5])

    async def cancelled() -> None:
        async def consume() -> None:
            async for _ in loader.stream():
                pass

        task = asyncio.create_task(consume())
        while not held.begun.is_set():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    held.let_go.set()
    until(lambda: not loader_threads())
    assert len([*loader]) == len(LAYERS)


def test_leaving_an_async_loop_ends_the_threads(loader: WeightLoader) -> None:
    async def first() -> str:
        async for name, _ in loader.stream():
            return name
        raise AssertionError

    assert asyncio.run(first()) == LAYERS[0]
    until(lambda: not loader_threads())


def test_two_async_loops_run_side_by_side(loader: WeightLoader) -> None:
    async def collect(names: str) -> list[str]:
        return [name async for name, _ in loader.stream(names)]

    async def both() -> list[list[str]]:
        return [*await asyncio.gather(collect("*.norm"), collect("*.up.weight"))]

    assert asyncio.run(both()) == [LAYERS[2::3], LAYERS[0::3]]


def test_damage_ends_an_async_loop_and_names_the_layer(tmp_path: Path) -> None:
    rows = numbered(LAYERS)
    rows[4] = rows[4].but(data=bytes(96))
    loader = WeightLoader(write_v2(tmp_path / "w.parquet", rows))

    async def collect() -> list[str]:
        return [name async for name, _ in loader.stream()]

    with pytest.raises(CorruptWeights) as caught:
        asyncio.run(collect())
    assert caught.value.layer == LAYERS[4]
    until(lambda: not loader_threads())


def test_a_stream_of_a_closed_loader_says_so(loader: WeightLoader) -> None:
    stream = loader.stream()
    loader.close()
    with pytest.raises(InvalidConfig, match="closed"):
        next(iter(stream))
    with pytest.raises(InvalidConfig, match="closed"):
        loader.stream()
