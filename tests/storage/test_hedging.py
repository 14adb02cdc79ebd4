"""Second requests for stragglers: when, how many, and that the bytes are those of the answer that counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arrowquant_dist.errors import IncompleteDataset
from arrowquant_dist.loader import WeightLoader
from arrowquant_dist.storage.base import ByteRange
from arrowquant_dist.storage.remote.hedging import Hedges, RangeTimes
from arrowquant_dist.storage.traffic import Traffic
from tests.format.encoder import kept_row
from tests.servers.faults import Fault, Kind
from tests.storage.s3_faults import PIECES, Flaky
from tests.target.targets import make_target

MIB = 1 << 20
RANGE = r"\nrange:"


def known(*seconds: float, nbytes: int = MIB) -> RangeTimes:
    pace = RangeTimes()
    for one in seconds:
        pace.add(nbytes, one)
    return pace


def test_a_straggler_takes_three_times_what_95_of_100_of_its_like_take() -> None:
    pace = known(*(float(i) for i in range(1, 61)))
    assert pace.patience(MIB) == pytest.approx(3 * 57.0)


def test_ranges_of_other_sizes_are_not_its_like() -> None:
    pace = known(*([1.0] * 20))
    assert pace.patience(MIB // 2) == pace.patience(2 * MIB) == pytest.approx(3.0)
    assert pace.patience(MIB // 4) is None
    assert pace.patience(4 * MIB) is None


def test_nothing_is_a_straggler_before_eight_of_its_like_are_known() -> None:
    assert known(*([1.0] * 7)).patience(MIB) is None
    assert known(*([1.0] * 8)).patience(MIB) == 3.0


def test_a_few_milliseconds_are_never_long() -> None:
    assert known(*([0.001] * 8)).patience(MIB) == 0.1


def test_what_was_slow_long_ago_is_forgotten() -> None:
    assert known(*([100.0] * 30), *([1.0] * 64)).patience(MIB) == 3.0


class Impatient(RangeTimes):
    def patience(self, nbytes: int) -> float | None:  # noqa: ARG002 - as the real one has it
        return 0.0


class Attempts:
    """Each attempt waits for its turn to be let go of, then fills its memory with its own number, or fails."""

    def __init__(self, *failing: int) -> None:
        self.failing = failing
        self.turns: list[asyncio.Event] = []
        self.cancelled: list[int] = []
        self.begun = asyncio.Condition()

    async def __call__(self, view: memoryview) -> int:
        number, turn = len(self.turns) + 1, asyncio.Event()
        self.turns.append(turn)
        async with self.begun:
            self.begun.notify_all()
        try:
            await turn.wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        if number in self.failing:
            raise OSError(f"attempt {number}")
        view[:] = bytes([number]) * len(view)
        return number

    async def number(self, count: int) -> None:
        async with self.begun:
            await self.begun.wait_for(lambda: len(self.turns) >= count)


def run(
    story: Callable[[Attempts, asyncio.Future[int]], Awaitable[None]], *failing: int
) -> tuple[object, Attempts, int]:
    """(what was returned or raised, the attempts, second requests) of one range of 4 bytes."""

    async def all_of_it() -> tuple[object, Attempts, int]:
        attempts, traffic = Attempts(*failing), Traffic()
        reading = asyncio.ensure_future(
            Hedges(2, traffic, Impatient()).read(attempts, memoryview(bytearray(4)))
        )
        await attempts.number(2)
        await story(attempts, reading)
        [found] = await asyncio.gather(reading, return_exceptions=True)
        return found, attempts, traffic.total.hedged

    return asyncio.run(all_of_it())


def test_the_second_answer_counts_where_the_first_does_not_come() -> None:
    async def story(attempts: Attempts, _: object) -> None:
        attempts.turns[1].set()

    found, attempts, hedged = run(story)
    assert (found, attempts.cancelled, hedged) == (2, [1], 1)


def test_bytes_are_those_of_the_answer_that_counts() -> None:
    memory = bytearray(4)

    async def all_of_it(first: int) -> None:
        attempts = Attempts()
        reading = asyncio.ensure_future(Hedges(1, Traffic(), Impatient()).read(attempts, memoryview(memory)))
        await attempts.number(2)
        attempts.turns[first - 1].set()
        assert await reading == first

    for first in (2, 1):
        asyncio.run(all_of_it(first))
        assert bytes(memory) == bytes([first]) * 4


def test_the_first_answer_counts_where_it_comes_first() -> None:
    async def story(attempts: Attempts, _: object) -> None:
        attempts.turns[0].set()

    found, attempts, _ = run(story)
    assert (found, attempts.cancelled) == (1, [2])


@pytest.mark.parametrize("failing", [1, 2])
def test_one_that_fails_leaves_it_to_the_other(failing: int) -> None:
    async def story(attempts: Attempts, _: object) -> None:
        attempts.turns[failing - 1].set()
        await asyncio.sleep(0)
        attempts.turns[2 - failing].set()

    found, _, _ = run(story, failing)
    assert found == 3 - failing


def test_where_both_fail_the_first_says_why() -> None:
    async def story(attempts: Attempts, _: object) -> None:
        for turn in attempts.turns:
            turn.set()

    found, _, _ = run(story, 1, 2)
    assert str(found) == "attempt 1"


def test_a_cancelled_read_leaves_neither_at_work() -> None:
    async def story(_: Attempts, reading: asyncio.Future[int]) -> None:
        reading.cancel()

    found, attempts, _ = run(story)
    assert isinstance(found, asyncio.CancelledError)
    assert sorted(attempts.cancelled) == [1, 2]


@pytest.mark.parametrize("most", [0, 1, 2])
def test_there_are_no_more_second_requests_at_a_time_than_the_setting_says(most: int) -> None:
    async def all_of_it() -> int:
        attempts, traffic = Attempts(), Traffic()
        hedges = Hedges(most, traffic, Impatient())
        reads = [asyncio.ensure_future(hedges.read(attempts, memoryview(bytearray(4)))) for _ in range(3)]
        await attempts.number(3 + most)
        for turn in attempts.turns:
            turn.set()
        await asyncio.gather(*reads)
        assert len(attempts.turns) == 3 + most
        return traffic.total.hedged

    assert asyncio.run(all_of_it()) == most


def test_a_connection_that_stalls_holds_up_no_read(flaky: Flaky) -> None:
    """The time-out is a minute; without a second request the read would take as long, and count as a repetition."""
    data = np.random.default_rng(5).bytes(20 * PIECES.range_bytes)
    flaky.put("x", data)
    flaky.fail(Fault(Kind.STALLED_BODY, header=RANGE, nth=14))
    store = flaky.store(replace(PIECES, requests=2, hedges=1))
    assert store.read_range("x", ByteRange(0, len(data))).tobytes() == data
    assert [one.kind for one in flaky.proxy.injected] == [Kind.STALLED_BODY]
    assert (store.traffic.total.hedged, store.traffic.total.retries) == (1, 0)


@pytest.mark.slow
def test_one_layer_of_ten_thousand_is_three_requests_after_the_manifest(
    flaky: Flaky, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("many") / "t"
    rows = [kept_row(f"layer{i}", np.full((2, 3), i, "<f4"), "float32") for i in range(10_000)]
    make_target(root, [rows], compression="none")
    for path in root.rglob("*"):
        if path.is_file():
            flaky.put(f"t/{path.relative_to(root)}", path.read_bytes())
    seen: list[tuple[str, str]] = []
    flaky.proxy.on_request = lambda method, path: seen.append((method, path.partition("?")[0]))
    loader = WeightLoader(f"{flaky.bucket.uri}/t", storage_options=flaky.options)
    assert loader["layer7777"].tolist() == [[7777.0] * 3] * 2
    last = max(i for i, (_, path) in enumerate(seen) if path.endswith("manifest.json"))
    assert len(seen) - last - 1 == 3, seen  # the index, the data, and what verifies it


def test_a_part_that_is_gone_is_told_by_the_read_that_needs_it(flaky: Flaky, tmp_path: Path) -> None:
    rows = [kept_row("w", np.ones((2, 3), "<f4"), "float32")]
    make_target(tmp_path / "t", [rows], compression="none")
    for path in (tmp_path / "t").rglob("*"):
        if path.is_file() and path.suffix != ".parquet":
            flaky.put(f"t/{path.relative_to(tmp_path / 't')}", path.read_bytes())
    flaky.put("t/index.parquet", (tmp_path / "t" / "index.parquet").read_bytes())
    loader = WeightLoader(f"{flaky.bucket.uri}/t", storage_options=flaky.options)
    for read in (lambda: loader["w"], lambda: list(loader)):
        with pytest.raises(IncompleteDataset, match="a part that the dataset needs is gone") as caught:
            read()
        assert caught.value.layer == "w"
