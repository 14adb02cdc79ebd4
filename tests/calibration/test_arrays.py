"""What a calibration writes is complete or not there at all, since its presence means that the work is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from arrowquant_dist.calibration.arrays import ArrayDraft, ArrayFile, read_all, write_arrays
from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.storage.local import LocalStore


def test_nobody_sees_an_object_before_it_is_whole(tmp_path: Path) -> None:
    store, seen = LocalStore(str(tmp_path)), []

    def make() -> Iterator[np.ndarray]:
        yield np.zeros(3, np.float32)
        seen.append(store.exists("run/a.safetensors"))
        yield np.ones(2, np.float32)

    write_arrays(store, "run/a.safetensors", [ArrayDraft("a", (5,), "float32", make)])
    assert seen == [False]
    np.testing.assert_array_equal(read_all(store, "run/a.safetensors")["a"], [0, 0, 0, 1, 1])


def test_one_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))

    def make() -> Iterator[np.ndarray]:
        yield np.zeros(3, np.float32)
        raise KeyError

    with pytest.raises(KeyError):
        write_arrays(store, "run/a.safetensors", [ArrayDraft("a", (5,), "float32", make)])
    assert store.list("run") == []


def test_any_part_is_read_and_a_flipped_bit_is_found_where_it_lies(tmp_path: Path) -> None:
    store, values = LocalStore(str(tmp_path)), np.arange(700_000, dtype=np.float32)
    write_arrays(store, "a", [ArrayDraft.of("one", values), ArrayDraft.of("two", values[:10])])
    file = ArrayFile(store, "a")
    assert file.shapes == {"one": (700_000,), "two": (10,)}
    np.testing.assert_array_equal(file.read_values("one", 262_140, 600_001), values[262_140:600_001])
    np.testing.assert_array_equal(file.read("two"), values[:10])
    data = bytearray((tmp_path / "a").read_bytes())
    data[int.from_bytes(data[:8], "little") + 8 + 4 * 600_000] ^= 1
    (tmp_path / "a").write_bytes(data)
    np.testing.assert_array_equal(file.read_values("one", 0, 500_000), values[:500_000])
    with pytest.raises(CorruptWeights, match="of 'one' is damaged"):
        file.read_values("one", 500_000, 600_000)
