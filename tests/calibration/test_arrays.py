"""What a calibration writes is there whole, or not at all: that it is there says that it was done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from arrowquant_dist.calibration.arrays import ArrayDraft, read_all, write_arrays
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
