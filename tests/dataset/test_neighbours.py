"""Whole layers of several blocks, read where each request costs a round trip: few requests, the same values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.loader import WeightLoader
from tests.format.encoder import Row, kept_row, random_row, signed
from tests.servers.range_server import RangeServer
from tests.target.targets import make_target

MIB = 1 << 20
COLUMNS = 320
EDGES = (0, 18, 36, 54, 72, 80)  # of blocks
KINDS: dict[str, dict[str, Any]] = {
    "int8": {"quant_type": "int8"},
    "int4": {"quant_type": "int4", "group_size": 64},
    "per tensor": {"quant_type": "int8", "per_tensor": True},
}


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with RangeServer() as running:
        yield running


def blocks_of(name: str, kind: str) -> list[Row]:
    rng = np.random.default_rng(3)
    place: dict[str, Any] = {"layer_shape": [EDGES[-1], COLUMNS]}
    if kind == "kept":
        values = rng.standard_normal((EDGES[-1], COLUMNS)).astype("<f4")
        return [
            kept_row(name, values[first:stop], "float32", row_start=first, **place)
            for first, stop in pairwise(EDGES)
        ]
    return [
        random_row(rng, name, stop - first, COLUMNS, row_start=first, **KINDS[kind], **place)
        for first, stop in pairwise(EDGES)
    ]


def decoded(rows: Sequence[Row]) -> np.ndarray:
    return np.concatenate([row.decoded for row in rows]).astype("<f4")


def opened(server: RangeServer, target: str, **settings: Any) -> WeightLoader:
    uri = server.put(Path(target))
    loader = WeightLoader(uri, storage_options=server.options, transfer={"hedges": 0}, **settings)
    server.asked.clear()
    return loader


def read_into(loader: WeightLoader) -> np.ndarray:
    tensor = torch.empty(loader.layer("w").shape)
    loader.read_into("w", tensor)
    return tensor.numpy()


WAYS: dict[str, Callable[[WeightLoader], np.ndarray]] = {
    "read": lambda loader: loader["w"].numpy(),
    "stream": lambda loader: dict(loader.stream("w"))["w"].numpy(),
    "into": read_into,
    "codes": lambda loader: loader.as_codes()["w"].values(),
}


@pytest.mark.parametrize(
    ("kind", "compression"),
    [("kept", "none"), ("kept", "zstd"), ("int8", "none"), ("int4", "zstd"), ("per tensor", "none")],
)
@pytest.mark.parametrize("way", WAYS)
def test_a_whole_layer_takes_one_request_a_part(
    tmp_path: Path, server: RangeServer, compression: str, kind: str, way: str
) -> None:
    blocks = blocks_of("w", kind)
    target = make_target(tmp_path / "t", [blocks[:3], blocks[3:]], compression=compression)
    with opened(server, target) as loader:
        assert np.array_equal(WAYS[way](loader), decoded(blocks))
    assert len(server.asked) == 2
    parts = sum(len(content) for path, content in server.objects.items() if path.endswith(".parquet"))
    assert sum(len(one.part) for one in server.asked) < parts


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_columns_of_every_row_take_no_more(tmp_path: Path, server: RangeServer, compression: str) -> None:
    blocks = blocks_of("w", "int4")
    target = make_target(tmp_path / "t", [blocks], compression=compression)
    with opened(server, target) as loader:
        found = loader.read("w", columns=slice(64, 256))
        assert np.array_equal(found.numpy(), decoded(blocks)[:, 64:256])
    assert len(server.asked) == 1


def test_rows_of_a_layer_cost_none_of_the_others(tmp_path: Path, server: RangeServer) -> None:
    blocks = blocks_of("w", "int8")
    target = make_target(tmp_path / "t", [blocks], compression="none")
    with opened(server, target) as loader:
        found = loader.read("w", rows=slice(18, 72))
        assert np.array_equal(found.numpy(), decoded(blocks)[18:72])
        own = sum(block.stored_nbytes for block in loader.layer("w").blocks[1:4])
        assert loader.stats.nbytes_read <= own + 2 * 2048  # between data and scales, and those and digests
    assert len(server.asked) <= 3


def test_small_layers_of_several_blocks_are_whole_layers_too(tmp_path: Path, server: RangeServer) -> None:
    layers = {name: blocks_of(name, kind) for name, kind in {"a": "int8", "b": "kept", "c": "int4"}.items()}
    target = make_target(
        tmp_path / "t", [[row for rows in layers.values() for row in rows]], compression="none"
    )
    with opened(server, target) as loader:
        for name, tensor in loader:
            assert np.array_equal(tensor.numpy(), decoded(layers[name]))
    assert len(server.asked) == 1


def big_blocks(count: int) -> list[Row]:
    values = np.random.default_rng(1).standard_normal((count * 3072, 256)).astype("<f4")  # 3 MiB a block
    place: dict[str, Any] = {"layer_shape": [*values.shape]}
    return [
        kept_row("w", values[first : first + 3072], "float32", row_start=first, **place)
        for first in range(0, len(values), 3072)
    ]


@pytest.mark.parametrize("way", ["read", "codes"])
def test_blocks_are_joined_to_no_more_than_a_request_has(
    tmp_path: Path, server: RangeServer, way: str
) -> None:
    blocks = big_blocks(6)
    with opened(server, make_target(tmp_path / "t", [blocks], compression="none")) as loader:
        assert np.array_equal(WAYS[way](loader), decoded(blocks))
    assert len(server.asked) == 3
    assert max(len(one.part) for one in server.asked) < 8 * MIB


@pytest.mark.parametrize(("compression", "workers"), [("none", 1), ("none", 8), ("zstd", 8)])
def test_what_is_joined_stays_within_the_budget_that_one_block_at_a_time_needs(
    tmp_path: Path, server: RangeServer, compression: str, workers: int
) -> None:
    blocks = big_blocks(4)
    target = make_target(tmp_path / "t", [blocks], compression=compression)
    needed = 12 * MIB + 3 * MIB * (1 if compression == "none" else 2) + 64 * 1024
    for budget in (needed, 2 * needed):
        with opened(server, target, memory_budget=budget, workers=workers) as loader:
            assert np.array_equal(loader["w"].numpy(), decoded(blocks))
            assert loader.stats.peak_nbytes <= budget
            found = dict(loader)
            assert np.array_equal(found["w"].numpy(), decoded(blocks))
            assert loader.stats.peak_nbytes <= budget


@pytest.mark.parametrize("way", ["stream", "codes"])
def test_a_flipped_byte_among_joined_blocks_names_its_layer_and_bytes(
    tmp_path: Path, server: RangeServer, way: str
) -> None:
    blocks = blocks_of("w", "int8")
    target = make_target(tmp_path / "t", [blocks], compression="none")
    [part] = Path(target).glob("weights/*/*.parquet")
    data = bytearray(part.read_bytes())
    at = data.index(blocks[4].columns["data"])
    data[at + 7] ^= 1
    part.write_bytes(data)
    with opened(server, target) as loader, pytest.raises(CorruptWeights) as caught:
        WAYS[way](loader)
    assert caught.value.layer == "w"
    assert caught.value.byte_range == (at, at + len(blocks[4].columns["data"]))


def test_a_scale_that_is_not_finite_among_joined_blocks_is_found(tmp_path: Path, server: RangeServer) -> None:
    blocks = blocks_of("w", "int8")
    bad = np.frombuffer(blocks[2].columns["scales"], "<f4").copy()
    bad[1] = np.inf
    blocks[2] = blocks[2].but(**signed({**blocks[2].columns, "scales": bad.tobytes()}))
    target = make_target(tmp_path / "t", [blocks], compression="none")
    with opened(server, target) as loader, pytest.raises(CorruptWeights, match=r"scales\[1\]"):
        loader["w"]
