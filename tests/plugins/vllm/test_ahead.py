"""What a model takes next is read while it takes what comes before, but never more than there is room for."""

from __future__ import annotations

import threading

import pytest

from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.plugins.vllm.ahead import Ahead
from arrowquant_dist.plugins.vllm.lazy import Box

SHAPE = (8, 4)
PARAMETERS = ("q_proj", "down_proj")
NAMES = ["embed", *(f"layers.{i}.{name}" for i in range(6) for name in PARAMETERS), "head"]
HALF = {"q_proj": Box(range(4), range(4)), "down_proj": Box(range(8), range(2))}
WHOLE = Box(range(8), range(4))


class Reader:
    """Notes what it is asked for, and how much of it is held."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Box]] = []
        self._changed = threading.Condition()

    def read(self, name: str, box: Box) -> str:
        with self._changed:
            self.asked.append((name, box))
            self._changed.notify_all()
        return f"{name} {box}"

    def wait_for(self, *names: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: set(names) <= {name for name, _ in self.asked}, timeout=60)

    def ahead(self, limit: int = 1000) -> Ahead[str]:
        shapes = dict.fromkeys(NAMES, SHAPE)
        return Ahead(shapes, self.read, nbytes, workers=2, limit_nbytes=limit)


def nbytes(name: str, box: Box) -> int:
    return len(box.rows) * len(box.columns)


def box_of(name: str) -> Box:
    return HALF.get(name.rpartition(".")[2], WHOLE)


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_each_part_is_what_was_asked_for_and_read_once(reader: Reader) -> None:
    with reader.ahead() as ahead:
        for name in NAMES:
            assert ahead.take(name, box_of(name)) == f"{name} {box_of(name)}"
    assert sorted(reader.asked, key=str) == sorted(((name, box_of(name)) for name in NAMES), key=str)


def test_after_the_first_block_the_others_are_on_their_way(reader: Reader) -> None:
    with reader.ahead() as ahead:
        for name in NAMES[:4]:  # the first block, and one parameter of the second
            ahead.take(name, box_of(name))
        reader.wait_for(*NAMES[:-1])
    assert sorted(reader.asked, key=str) == sorted(((name, box_of(name)) for name in NAMES[:-1]), key=str)


def test_results_that_wait_stay_within_the_limit(reader: Reader) -> None:
    with reader.ahead(limit=40) as ahead:
        for name in NAMES[:5]:
            ahead.take(name, box_of(name))
        reader.wait_for(*NAMES[:7])  # of 16 bytes each, two wait
    assert {name for name, _ in reader.asked} == set(NAMES[:7])


def test_what_fits_the_limit_in_no_way_is_read_when_it_is_asked_for(reader: Reader) -> None:
    with reader.ahead(limit=15) as ahead:
        for name in NAMES:
            assert ahead.take(name, box_of(name)) == f"{name} {box_of(name)}"
    assert len(reader.asked) == len(NAMES)


def test_a_layer_that_is_taken_in_parts_is_foreseen_in_parts(reader: Reader) -> None:
    thirds = [Box(range(i, i + 2), range(4)) for i in (0, 2, 6)]
    with reader.ahead() as ahead:
        for index in range(3):
            for box in thirds:
                assert ahead.take(f"layers.{index}.q_proj", box) == f"layers.{index}.q_proj {box}"
    assert len(set(reader.asked)) == len(reader.asked)


def test_layers_of_another_rank_are_not_read(reader: Reader) -> None:
    own = [name for name in NAMES if "down_proj" not in name]
    with reader.ahead() as ahead:
        for name in own:
            ahead.take(name, box_of(name))
    assert {name for name, _ in reader.asked} == set(own)


def test_a_part_that_was_foreseen_wrongly_is_read_as_it_is_asked_for(reader: Reader) -> None:
    with reader.ahead() as ahead:
        for index in range(6):
            box = Box(range(index, index + 1), range(4))
            assert ahead.take(f"layers.{index}.q_proj", box) == f"layers.{index}.q_proj {box}"
        assert ahead.in_vain


def test_where_foreseeing_is_in_vain_it_ends() -> None:
    names = [f"layers.{i}.w" for i in range(200)]
    reader = Reader()
    with Ahead(dict.fromkeys(names, SHAPE), reader.read, nbytes, workers=1, limit_nbytes=64) as ahead:
        for index, name in enumerate(names):
            ahead.take(name, Box(range(index % 7, 8), range(4)))
        assert ahead.in_vain < 40


def test_any_order_is_served(reader: Reader) -> None:
    with reader.ahead() as ahead:
        for name in reversed(NAMES):
            assert ahead.take(name, box_of(name)) == f"{name} {box_of(name)}"


def test_what_reading_ahead_raised_is_raised_when_it_is_taken() -> None:
    def read(name: str, box: Box) -> str:
        if name == "layers.3.q_proj":
            raise CorruptWeights("bytes differ", layer=name)
        return name

    with Ahead(dict.fromkeys(NAMES, SHAPE), read, nbytes, workers=2, limit_nbytes=1000) as ahead:
        for name in NAMES[:7]:
            ahead.take(name, box_of(name))
        with pytest.raises(CorruptWeights, match=r"layers\.3\.q_proj"):
            ahead.take("layers.3.q_proj", box_of("layers.3.q_proj"))
