"""A failure while weights are read is one sentence that names the layer and the file, in each way of reading."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from arrowquant_dist.errors import (
    ArrowQuantError,
    CorruptWeights,
    CutObject,
    IncompleteDataset,
    StorageError,
)
from arrowquant_dist.loader import WeightLoader
from tests.format.encoder import Row, kept_row, write_v2
from tests.loader.test_stream import loader_threads
from tests.target.targets import make_target
from tests.waiting import until

SMALL, LARGE = (16, 24), (300, 1024)  # read together; read in steps of a MiB
LAYERS = 9
DAMAGED = 6


def rows(shape: tuple[int, int]) -> list[Row]:
    values = np.random.default_rng(0).standard_normal((LAYERS, *shape)).astype("<f4")
    return [kept_row(f"layer{i}", values[i], "float32") for i in range(LAYERS)]


async def _collected(loader: WeightLoader) -> None:
    async for _ in loader.stream():
        pass


WAYS: dict[str, Callable[[WeightLoader], object]] = {
    "for": lambda loader: [*loader],
    "arrival": lambda loader: [*loader.stream(order="arrival")],
    "async for": lambda loader: asyncio.run(_collected(loader)),
    "borrowed": lambda loader: [*loader.stream().borrowed()],
    "rows": lambda loader: [*loader.stream(rows=slice(0, None))],
    "columns": lambda loader: [*loader.stream(columns=slice(1, None))],
    "read": lambda loader: loader.read(f"layer{DAMAGED}"),
    "read_into": lambda loader: loader.read_into(
        f"layer{DAMAGED}", torch.empty(loader.layer(f"layer{DAMAGED}").shape)
    ),
    "load_into": lambda loader: loader.load_into(_module(loader)),
    "codes": lambda loader: [*loader.as_codes().stream()],
}


def _module(loader: WeightLoader) -> torch.nn.Module:
    module = torch.nn.Module()
    for name in loader.stream().names:
        module.register_parameter(name, torch.nn.Parameter(torch.empty(loader.layer(name).shape)))
    return module


def target_of(folder: Path, shape: tuple[int, int], compression: str) -> Path:
    """A shard a third of the layers."""
    every = rows(shape)
    shards = [every[i : i + 3] for i in range(0, LAYERS, 3)]
    return Path(make_target(folder / "t", shards, compression=compression))


def part_of(target: Path, layer: int) -> Path:
    [part] = target.glob(f"weights/shard={layer // 3:05}/*.parquet")
    return part


def cut(part: Path, loader: WeightLoader) -> None:
    [block] = loader.layer(f"layer{DAMAGED}").blocks
    assert block.ranges is not None
    part.write_bytes(part.read_bytes()[: block.ranges.data.offset + 5])


def remove(part: Path, _: WeightLoader) -> None:
    part.unlink()


def overwrite(part: Path, loader: WeightLoader) -> None:
    """In place, with other bytes from the layer on."""
    [block] = loader.layer(f"layer{DAMAGED}").blocks
    assert block.ranges is not None
    content = bytearray(part.read_bytes())
    start = block.ranges.data.offset
    content[start:] = bytes(len(content) - start)
    part.write_bytes(content)


def fail(part: Path, _: WeightLoader) -> None:
    """Every read of it is EIO: nothing is at the first addresses of a process."""
    part.unlink()
    part.symlink_to("/proc/self/mem")


def fold(part: Path, _: WeightLoader) -> None:
    part.unlink()
    part.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path, WeightLoader], None], type[ArrowQuantError], str]] = {
    "cut": (cut, CutObject, r"the object ends \d+ bytes too early; .*fetch it again"),
    "gone": (remove, IncompleteDataset, "a part that the dataset needs is gone; fetch it again"),
    "overwritten": (
        overwrite,
        CorruptWeights,
        "(checksum|finite|decompress|holds).*; .*quantize again|fetch",
    ),
    "unreadable": (fail, StorageError, r"Input/output error"),
    "a folder": (fold, IncompleteDataset, "gone"),
}


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    layouts = {"small": (SMALL, "none"), "large": (LARGE, "none"), "compressed": (LARGE, "zstd")}
    return {name: target_of(tmp_path_factory.mktemp(name), *layout) for name, layout in layouts.items()}


CASES = [
    *(("small", way) for way in WAYS),
    *((layout, way) for layout in ("large", "compressed") for way in ("for", "read", "codes")),
]


@pytest.mark.parametrize(("layout", "way"), CASES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_part_that_fails_is_one_sentence_with_its_layer_and_file(
    tmp_path: Path, targets: dict[str, Path], damage: str, layout: str, way: str
) -> None:
    target = Path(shutil.copytree(targets[layout], tmp_path / "t"))
    part = part_of(target, DAMAGED)
    with WeightLoader(target, workers=2) as loader:
        do, kind, said = DAMAGES[damage]
        do(part, loader)
        with pytest.raises(kind, match=said) as caught:
            WAYS[way](loader)
    late = [
        f"layer{i}" for i in range(DAMAGED, LAYERS)
    ]  # all of the part's fail, and one of them arrives first
    assert caught.value.layer in (late if way == "arrival" else late[:1])
    assert caught.value.uri == str(part)
    assert str(caught.value).startswith(f"layer {caught.value.layer!r}, {part}")
    assert "\n" not in str(caught.value)
    until(lambda: not loader_threads())


@pytest.mark.parametrize("damage", ["cut", "gone", "unreadable"])
def test_layers_before_the_one_that_fails_are_given(tmp_path: Path, damage: str) -> None:
    """Layers in one request as well: what cannot be read together is read alone."""
    target = target_of(tmp_path, SMALL, "none")
    seen: list[str] = []
    with WeightLoader(target) as loader:
        DAMAGES[damage][0](part_of(target, DAMAGED), loader)
        with pytest.raises(ArrowQuantError):
            seen.extend(name for name, _ in loader)
    assert seen == [f"layer{i}" for i in range(DAMAGED)]


@pytest.mark.parametrize("way", ["for", "arrival", "read", "borrowed"])
@pytest.mark.parametrize("damage", ["cut", "unreadable"])
def test_a_bare_file_that_fails_names_layer_and_file(tmp_path: Path, damage: str, way: str) -> None:
    path = write_v2(tmp_path / "w.parquet", rows(SMALL))
    with WeightLoader(path, workers=2) as loader:
        if damage == "cut":
            content = path.read_bytes()
            path.write_bytes(content[: content.index(rows(SMALL)[DAMAGED].columns["data"]) + 5])
        else:
            fail(path, loader)
            loader._opened.dataset.store._files.clear()  # type: ignore[attr-defined]
        with pytest.raises(ArrowQuantError) as caught:
            WAYS[way](loader)
    assert caught.value.layer is not None
    assert caught.value.uri == str(path)


@pytest.mark.parametrize("way", ["for", "read"])
def test_a_part_that_is_replaced_by_rename_while_it_is_open_is_read_as_it_was(
    tmp_path: Path, way: str
) -> None:
    target = target_of(tmp_path, SMALL, "none")
    part = part_of(target, DAMAGED)
    with WeightLoader(target) as loader:
        loader[f"layer{DAMAGED}"]
        shutil.copy(part_of(target, 0), tmp_path / "other")
        (tmp_path / "other").replace(part)
        WAYS[way](loader)
