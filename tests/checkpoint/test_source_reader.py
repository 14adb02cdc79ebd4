"""Values are read as they are in the file: sliced, coalesced, aligned, and only from the source of the plan."""

from __future__ import annotations

import math
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.errors import ArrowQuantError, InvalidCheckpoint, NotFound
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from tests.checkpoint.checkpoint_files import entry, safetensors_bytes

pytestmark = pytest.mark.usefixtures("ticks")
MIB = 1 << 20


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    save_file(
        {f"w{i}": torch.arange(1000, dtype=torch.int32) + 1000 * i for i in range(8)},
        tmp_path / "m.safetensors",
    )
    return open_checkpoint(str(tmp_path / "m.safetensors"))


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The (start, nbytes) of each range that stores are asked for."""
    asked: list[tuple[int, int]] = []
    cls = type(open_store("/"))
    original = cls.read_into

    def counting(self: Store, path: str, start: int, out: np.ndarray) -> None:
        asked.append((start, out.nbytes))
        original(self, path, start, out)

    monkeypatch.setattr(cls, "read_into", counting)
    return asked


def test_slices_are_those_values_in_the_order_asked(checkpoint: Checkpoint) -> None:
    a, b = checkpoint.layers[1], checkpoint.layers[5]
    with SourceReader() as reader:
        found = reader.read([(b, 10, 20), (a, 0, 1000), (b, 0, 0), (a, 999, 1000), (b, 5, 15)])
    expected = [range(5010, 5020), range(1000, 2000), range(0), range(1999, 2000), range(5005, 5015)]
    for values, wanted in zip(found, expected, strict=True):
        assert values.dtype == np.uint8
        assert values.ndim == 1
        assert values.view("<i4").tolist() == list(wanted)


def test_neighbours_come_in_one_request(checkpoint: Checkpoint, requests: list[tuple[int, int]]) -> None:
    with SourceReader() as reader:
        reader.read([(layer, 0, 1000) for layer in checkpoint.layers])
    assert requests == [(checkpoint.layers[0].offset, 8 * 4000)]


def test_distant_slices_come_in_requests_of_their_own(
    tmp_path: Path, requests: list[tuple[int, int]]
) -> None:
    save_file({"w": torch.zeros(1 << 20, dtype=torch.uint8)}, tmp_path / "m.safetensors")
    layer = open_checkpoint(str(tmp_path / "m.safetensors")).layers[0]
    requests.clear()
    with SourceReader() as reader:
        reader.read([(layer, 0, 100), (layer, 100 + (64 << 10), 70_000), (layer, 500_000, 500_001)])
    assert requests == [(layer.offset, 70_000), (layer.offset + 500_000, 1)]


def test_large_values_behind_odd_ones_are_aligned_where_they_are_read_to(tmp_path: Path) -> None:
    odd = {"a": entry("U8", [5], 0, 5), "b": entry("F32", [MIB], 5, 5 + 4 * MIB)}
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes(odd, bytes(5 + 4 * MIB)))
    taken: list[np.ndarray] = []

    def allocate(nbytes: int) -> np.ndarray:
        taken.append(np.empty(nbytes, np.uint8))
        return taken[-1]

    checkpoint = open_checkpoint(str(path))
    with SourceReader() as reader:
        found = reader.read([(layer, 0, layer.num_params) for layer in checkpoint.layers], allocate)
    assert all(any(np.shares_memory(values, memory) for memory in taken) for values in found)
    assert all(values.ctypes.data % 4 == 0 for values in found if values.size > 5)


def test_results_are_aligned_even_where_the_file_is_not(tmp_path: Path) -> None:
    header = {"a": entry("U8", [1], 0, 1), "b": entry("F64", [3], 1, 25), "c": entry("BF16", [2], 25, 29)}
    (tmp_path / "m.safetensors").write_bytes(safetensors_bytes(header, bytes(range(29))))
    layers = open_checkpoint(str(tmp_path / "m.safetensors")).layers
    with SourceReader() as reader:
        found = reader.read([(layer, 0, layer.num_params) for layer in layers])
    assert [values.ctypes.data % size for values, size in zip(found, (1, 8, 2), strict=True)] == [0, 0, 0]
    assert b"".join(values.tobytes() for values in found) == bytes(range(29))


def test_one_reader_serves_many_threads(checkpoint: Checkpoint) -> None:
    with SourceReader(files=checkpoint.files) as reader, ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda layer: reader.read([(layer, 0, 1000)])[0], checkpoint.layers * 20)
        firsts = [int(values.view("<i4")[0]) for values in found]
    assert firsts == [1000 * i for i in range(8)] * 20


def test_a_reader_can_be_used_again_after_closing(checkpoint: Checkpoint) -> None:
    reader = SourceReader()
    first = reader.read([(checkpoint.layers[0], 0, 5)])
    reader.close()
    assert reader.read([(checkpoint.layers[0], 0, 5)])[0].tobytes() == first[0].tobytes()


def test_a_file_that_changed_since_the_plan_is_refused(checkpoint: Checkpoint) -> None:
    path = Path(checkpoint.files[0].uri)
    os.utime(path, ns=(1, 1))
    with (
        SourceReader(files=checkpoint.files) as reader,
        pytest.raises(InvalidCheckpoint, match="changed since"),
    ):
        reader.read([(checkpoint.layers[0], 0, 1)])


def test_a_file_cut_or_removed_after_planning_is_an_error_of_ours(checkpoint: Checkpoint) -> None:
    path = Path(checkpoint.files[0].uri)
    os.truncate(path, path.stat().st_size - 10)
    last = checkpoint.layers[-1]
    with SourceReader() as reader, pytest.raises(ArrowQuantError, match="too early"):
        reader.read([(last, 0, last.num_params)])
    path.unlink()
    with SourceReader() as reader, pytest.raises(NotFound):
        reader.read([(last, 0, 1)])


@pytest.mark.parametrize(
    ("header", "name", "most"),
    [
        ({"w": ("F8_E4M3", [1 << 16, 1 << 13]), "w_scale_inv": ("F32", [512, 64])}, "w", 8),
        (
            {
                "a.qweight": ("I32", [1 << 11, 1 << 16]),
                "a.qzeros": ("I32", [128, 1 << 13]),
                "a.scales": ("F16", [128, 1 << 16]),
                "a.g_idx": ("I32", [1 << 14]),
            },
            "a.weight",
            12,
        ),
        (
            {
                "w.qweight": ("I32", [1 << 14, 1 << 13]),
                "w.qzeros": ("I32", [128, 1 << 13]),
                "w.scales": ("F16", [128, 1 << 16]),
            },
            "w.weight",
            24,
        ),
        ({"e_blocks": ("U8", [64, 1 << 12, 128, 16]), "e_scales": ("U8", [64, 1 << 12, 128])}, "e", 24),
    ],
)
def test_a_slice_of_codes_takes_memory_for_itself_alone(
    tmp_path: Path, header: dict[str, tuple[str, list[int]]], name: str, most: int
) -> None:
    """Half a GiB of holes: 4 MiB of values are decoded from it. most: MiB; 16 of 24 are the window of transposed ones,
    which those do without whose rows are so far apart that they are read one by one."""
    entries, stop = {}, 0
    for key, (dtype, shape) in header.items():
        nbytes = math.prod(shape) * {"F32": 4, "I32": 4, "F16": 2}.get(dtype, 1)
        entries[key] = entry(dtype, shape, stop, stop + nbytes)
        stop += nbytes
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes(entries))
    os.truncate(path, path.stat().st_size + stop)
    (layer,) = open_checkpoint(str(path)).layers
    assert layer.name == name
    count = 4 * MIB // 2
    with SourceReader() as reader:
        reader.read([(layer, 0, 1 << 13)])  # compiles
        tracemalloc.start()
        reader.read([(layer, layer.num_params // 2, layer.num_params // 2 + count)])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < most * MIB
