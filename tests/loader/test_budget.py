"""What is in flight stays within the memory budget, and threads end with the caller that wanted their results."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrowquant_dist.dataset.prefetch import THREAD_NAME
from arrowquant_dist.errors import CorruptWeights, InvalidConfig, MemoryBudgetExceeded
from arrowquant_dist.loader import WeightLoader
from tests.format.encoder import Row, kept_row, signed, write_v1, write_v2
from tests.target.targets import make_target
from tests.waiting import until

MIB = 1 << 20


def float32_rows(count: int, shape: tuple[int, ...] = (4, 6)) -> list[Row]:
    rng = np.random.default_rng(count)
    return [kept_row(f"layer{i}", rng.standard_normal(shape).astype("<f4"), "float32") for i in range(count)]


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


def test_a_corrupt_layer_raises_at_its_turn_and_ends_the_threads(tmp_path: Path) -> None:
    rows = float32_rows(8)
    rows[5] = rows[5].but(data=bytes(len(rows[5].columns["data"])))
    loader = WeightLoader(str(write_v2(tmp_path / "w.parquet", rows)))
    seen: list[str] = []
    with pytest.raises(CorruptWeights) as caught:
        seen.extend(name for name, _ in loader)
    assert seen == [f"layer{i}" for i in range(5)]
    assert caught.value.layer == "layer5"
    until(lambda: not loader_threads())
    assert WeightLoader(str(tmp_path / "w.parquet"), verify=False)["layer5"].abs().sum() == 0


def test_leaving_the_loop_ends_the_threads(tmp_path: Path) -> None:
    loader = WeightLoader(str(write_v2(tmp_path / "w.parquet", float32_rows(50, (64, 64)))))
    for name, _ in loader:
        assert name == "layer0"
        break
    until(lambda: not loader_threads())
    assert len(list(loader)) == 50


def test_an_abandoned_iterator_ends_the_threads(tmp_path: Path) -> None:
    loader = WeightLoader(str(write_v2(tmp_path / "w.parquet", float32_rows(50, (64, 64)))))
    cycle: list[Any] = [iter(loader)]
    next(cycle[0])
    cycle.append(cycle)
    del cycle
    gc.collect()
    until(lambda: not loader_threads())


def test_an_interrupt_ends_the_threads(tmp_path: Path) -> None:
    loader = WeightLoader(str(write_v2(tmp_path / "w.parquet", float32_rows(50, (64, 64)))))

    def consume() -> None:
        for name, _ in loader:
            if name == "layer3":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    until(lambda: not loader_threads())


def test_a_closed_loader_says_so(tmp_path: Path) -> None:
    path = write_v2(tmp_path / "w.parquet", float32_rows(50))
    with WeightLoader(str(path)) as loader:
        pairs = iter(loader)
        next(pairs)
    assert not loader_threads()
    with pytest.raises(InvalidConfig, match="closed"):
        list(pairs)
    for use in (lambda: loader["layer0"], lambda: next(iter(loader))):
        with pytest.raises(InvalidConfig, match="closed"):
            use()


# Memory


def big_file(tmp_path: Path, layers: int = 24) -> Path:
    return write_v2(tmp_path / "big.parquet", big_rows(layers))


def big_rows(layers: int, rows: int = 512, columns: int = 1024) -> list[Row]:
    """`layers` int8 layers that decode to 4 · rows · columns bytes each."""
    rng = np.random.default_rng(0)
    scales = np.ones((rows, 1), "<f4")
    written = []
    for i in range(layers):
        codes = rng.integers(-128, 128, (rows, columns), dtype=np.int8)
        row = kept_row(f"layer{i}", codes, "int8")
        columns_of = {**row.columns, "dtype": "float32", "quant_type": "int8", "quant_axis": 0}
        written.append(Row(signed({**columns_of, "scales": scales.tobytes()}), codes))
    return written


@pytest.mark.parametrize("workers", [1, 4])
def test_what_is_in_flight_stays_within_the_budget(tmp_path: Path, workers: int) -> None:
    path = big_file(tmp_path)  # 24 layers of 2 MiB
    budget = 10 * MIB
    loader = WeightLoader(str(path), memory_budget=budget, workers=workers)
    for _ in loader:
        assert 0 < loader.stats.peak_nbytes <= budget
    assert loader.stats.peak_nbytes > budget // 2
    assert loader.stats.nbytes_read >= 24 * MIB // 2
    assert loader.stats.seconds > 0


GROWTH = """
import sys, threading
from pathlib import Path
import numba, torch
from arrowquant_dist.dataset.prefetch import THREAD_NAME
from arrowquant_dist.loader import WeightLoader
from tests.waiting import until

def resident(name):  # VmRSS, or VmHWM: the most of it so far
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) << 10

loader = WeightLoader(sys.argv[1], memory_budget=int(sys.argv[2]), workers=4)
pairs = iter(loader)
float(next(pairs)[1][0, 0])  # what is loaded and compiled once is not the budget's
pairs.close()
loader.close()
until(lambda: not any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate()))
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the most is taken from now on
loader = WeightLoader(sys.argv[1], memory_budget=int(sys.argv[2]), workers=4)
for name, tensor in loader:
    float(tensor[0, 0])
print(resident("VmHWM") - before)
"""


@pytest.mark.parametrize("kind", [pytest.param("v1", marks=pytest.mark.slow), "none", "zstd"])
def test_the_process_grows_by_no_more_than_the_budget(tmp_path: Path, kind: str) -> None:
    """Measured from outside the accounting: the kernel's peak of the resident set, of a loop over 128 MiB.

    What malloc keeps of freed memory, up to twice its threshold in each arena, is not the loader's to bound, nor are
    the stacks of its threads and Python's objects: 2 MiB.
    """
    rows = big_rows(layers=32, rows=1024, columns=1024)
    budget = 40 * MIB
    if kind == "v1":
        rng = np.random.default_rng(0)
        values = [kept_row(f"layer{i}", rng.random((256, 1024), "<f4"), "float32") for i in range(32)]
        path, budget = str(write_v1(tmp_path / "big.parquet", values)), 120 * MIB  # one row group of 32 MiB
    else:
        path = make_target(tmp_path / "big", [rows], compression=kind)
    command = [sys.executable, "-c", GROWTH, path, str(budget)]
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    env = {**os.environ, **malloc}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert 4 * MIB < int(out.stdout) < budget + 2 * MIB


def test_a_layer_beyond_the_budget_says_what_it_needs_and_can_be_read_by_rows(tmp_path: Path) -> None:
    path = big_file(tmp_path, layers=2)
    loader = WeightLoader(str(path), memory_budget="2MiB")
    with pytest.raises(MemoryBudgetExceeded, match=r"needs 4\.01 MiB.*rows=slice") as caught:
        loader["layer1"]
    assert caught.value.layer == "layer1"
    with pytest.raises(MemoryBudgetExceeded):
        next(iter(loader))


def test_other_layers_can_be_read_inside_a_loop_that_has_filled_the_budget(tmp_path: Path) -> None:
    path = big_file(tmp_path, layers=12)
    loader = WeightLoader(str(path), memory_budget=8 * MIB)
    expected = {name: tensor.numpy().tobytes() for name, tensor in WeightLoader(str(path))}
    names = []
    for name, tensor in loader:
        names.append(name)
        assert loader["layer11"].numpy().tobytes() == expected["layer11"]
        assert tensor.numpy().tobytes() == expected[name]
    assert names == [*expected]
    assert loader.stats.peak_nbytes <= 8 * MIB


def test_two_loops_share_one_budget(tmp_path: Path) -> None:
    path = big_file(tmp_path, layers=12)
    loader = WeightLoader(str(path), memory_budget=8 * MIB)
    for (name, tensor), (other_name, other) in zip(loader, loader, strict=True):
        assert name == other_name
        assert torch.equal(tensor, other)
    assert loader.stats.peak_nbytes <= 8 * MIB


def test_threads_that_read_at_once_share_the_budget(tmp_path: Path) -> None:
    path = big_file(tmp_path, layers=8)
    loader = WeightLoader(str(path), memory_budget=8 * MIB)
    sums: dict[int, float] = {}

    def work(number: int) -> None:
        sums[number] = sum(float(loader[f"layer{i}"].sum()) for i in range(8))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(sums.values())) == 1
    assert loader.stats.peak_nbytes <= 8 * MIB


def test_kept_tensors_do_not_stop_the_stream(tmp_path: Path) -> None:
    loader = WeightLoader(str(big_file(tmp_path)), memory_budget=6 * MIB)
    assert len(dict(iter(loader))) == 24


def test_a_row_group_beyond_the_budget_is_refused_when_opened(tmp_path: Path) -> None:
    path = write_v1(tmp_path / "v1.parquet", float32_rows(64, (128, 128)))
    with pytest.raises(MemoryBudgetExceeded, match="row group"):
        WeightLoader(str(path), memory_budget="1MiB")


def test_a_loader_without_threads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="workers"):
        WeightLoader(str(write_v2(tmp_path / "w.parquet", float32_rows(1))), workers=0)


@pytest.mark.parametrize("budget", ["a lot", -1, "2 parsecs"])
def test_a_budget_that_is_no_size_is_refused(tmp_path: Path, budget: str | int) -> None:
    path = write_v2(tmp_path / "w.parquet", float32_rows(1))
    with pytest.raises(InvalidConfig, match="memory_budget"):
        WeightLoader(str(path), memory_budget=budget)
