"""Borrowed streams: the same values in the same few pages, and an error for a tensor that is used after its time."""

from __future__ import annotations

import asyncio
import gc
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrowquant_dist.errors import CorruptWeights, InvalidConfig
from arrowquant_dist.loader import TensorParallel, WeightLoader
from arrowquant_dist.loader.lent import Lender
from arrowquant_dist.loader.stream import WeightStream
from tests.format.encoder import Row, kept_row, write_v2
from tests.servers.fixtures import Bucket
from tests.target.targets import make_target

KIB, MIB = 1 << 10, 1 << 20
SHAPE = (128, 256)  # 128 KiB of float32: large enough to be lent
NBYTES = 4 * SHAPE[0] * SHAPE[1]
LAYERS = 40


def value(index: int) -> np.ndarray:
    return (np.arange(SHAPE[0] * SHAPE[1], dtype="<f4") % 997 + index).reshape(SHAPE)


def rows(count: int = LAYERS) -> list[Row]:
    return [kept_row(f"layer{i}", value(i), "float32") for i in range(count)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v2(tmp_path_factory.mktemp("borrowed") / "w.parquet", rows())


@pytest.fixture
def lenders(monkeypatch: pytest.MonkeyPatch) -> list[Lender]:
    """Those that were made, in their order."""
    made: list[Lender] = []
    plain = Lender.__init__

    def init(self: Lender, *given: Any) -> None:
        made.append(self)
        plain(self, *given)

    monkeypatch.setattr(Lender, "__init__", init)
    return made


@pytest.mark.parametrize("order", ["given", "arrival"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rows": slice(3, 101)},
        {"columns": slice(17, 250)},
        {"parallel": TensorParallel(1, 3, 0)},
        {"parallel": TensorParallel(2, 3, 1), "rows": slice(1, None)},
    ],
)
def test_borrowed_tensors_have_the_values_of_owned_ones(
    path: Path, order: str, options: dict[str, Any]
) -> None:
    with WeightLoader(path, "2MiB", workers=2) as loader:
        owned = dict(loader.stream(order=order, **options))
        seen = {name: tensor.clone() for name, tensor in loader.stream(order=order, **options).borrowed()}
        assert seen.keys() == owned.keys()
        assert all(torch.equal(seen[name], owned[name]) for name in owned)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_each_dtype_is_lent(path: Path, dtype: str) -> None:
    with WeightLoader(path, dtype=dtype) as loader:
        for index, (_, tensor) in enumerate(loader.stream().borrowed()):
            assert torch.equal(tensor, torch.from_numpy(value(index)).to(getattr(torch, dtype)))


def test_a_stream_of_any_length_takes_the_same_few_pages(tmp_path: Path, lenders: list[Lender]) -> None:
    """A fixed budget and layers of three sizes: four times as many of them touch no page more."""
    touched = []
    for count in (24, 96):
        sizes = [(32 + 16 * (i % 3), 512) for i in range(count)]
        written = [kept_row(f"l{i}", np.full(size, i, "<f4"), "float32") for i, size in enumerate(sizes)]
        with WeightLoader(write_v2(tmp_path / f"{count}.parquet", written), "1MiB", workers=2) as loader:
            for index, (_, tensor) in enumerate(loader.stream().borrowed()):
                assert (tensor == index).all()
            touched.append(lenders[-1].resident_nbytes)
    assert 0 < max(touched) <= MIB


def test_tensors_that_follow_each_other_have_the_same_memory(path: Path) -> None:
    with WeightLoader(path, "1MiB", workers=1) as loader:
        places = {tensor.data_ptr() for _, tensor in loader.stream().borrowed()}
        owned = [tensor for _, tensor in loader]
    assert len(places) <= 8  # as many as fit the budget
    assert len({tensor.data_ptr() for tensor in owned}) == LAYERS


USES: dict[str, Callable[[torch.Tensor], object]] = {
    "shape": lambda kept: kept.shape,
    "sum": lambda kept: kept.sum(),
    "numpy": lambda kept: kept.numpy(),
    "asarray": np.asarray,
    "float": lambda kept: float(kept[0, 0]),
    "add": lambda kept: 1 + kept,
    "stack": lambda kept: torch.stack([kept]),
    "copy": lambda kept: torch.empty(SHAPE).copy_(kept),
    "fill": lambda kept: kept.fill_(0),
    "clone": lambda kept: kept.clone(),
    "pickle": pickle.dumps,
    "address": lambda kept: kept.data_ptr(),
    "load": lambda kept: torch.nn.Linear(256, 128, bias=False).load_state_dict({"weight": kept}),
}


@pytest.mark.parametrize("use", USES)
def test_a_tensor_that_is_used_after_its_time_is_an_error_that_names_its_layer(path: Path, use: str) -> None:
    with WeightLoader(path) as loader:
        kept = dict(loader.stream("layer[0-4]").borrowed())
    with pytest.raises(InvalidConfig, match=r"borrowed from a stream .* keep tensor\.clone\(\)") as caught:
        USES[use](kept["layer3"])
    assert caught.value.layer == "layer3"


def test_a_tensor_after_its_time_can_be_printed(path: Path) -> None:
    with WeightLoader(path) as loader:
        kept = dict(loader.stream("layer2").borrowed())
    assert repr(kept) == "{'layer2': <borrowed tensor of 'layer2', given back>}"


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_its_time_ends_whatever_torch_records(path: Path, context: Callable[[], Any]) -> None:
    with WeightLoader(path) as loader:
        pairs = iter(loader.stream().borrowed())
        with context():
            _, kept = next(pairs)
            if not kept.is_inference():
                kept.requires_grad_()
        next(pairs)
    with pytest.raises(InvalidConfig, match="borrowed"):
        kept.sum()


def views(tensor: torch.Tensor) -> Iterator[Any]:
    yield tensor[5:]
    yield tensor.T
    yield tensor.numpy()
    yield tensor.detach()
    yield torch.nn.Parameter(tensor, requires_grad=False)


@pytest.mark.parametrize("which", range(5))
def test_views_that_are_kept_are_never_written_over(path: Path, which: int) -> None:
    with WeightLoader(path, "1MiB", workers=2) as loader:
        kept = [[*views(tensor)][which] for _, tensor in loader.stream().borrowed()]
    for index, view in enumerate(kept):
        assert np.array_equal(view, [*views(torch.from_numpy(value(index)))][which])


def test_memory_is_used_again_once_the_last_view_is_gone(path: Path, lenders: list[Lender]) -> None:
    with WeightLoader(path, "1MiB", workers=1) as loader:
        kept = [tensor[:1] for _, tensor in loader.stream().borrowed()]
        del kept
        for _, tensor in loader.stream().borrowed():
            view = tensor[:1]
            assert view.shape == (1, 256)
        assert lenders[-1].resident_nbytes <= MIB


def test_a_tensor_in_hand_when_the_loop_is_left_stays_valid(path: Path) -> None:
    with WeightLoader(path) as loader:
        for name, tensor in loader.stream().borrowed():
            if name == "layer7":
                in_hand = tensor
                break
        first = next(iter(loader.stream("layer9").borrowed()))[1]
    gc.collect()
    assert torch.equal(in_hand, torch.from_numpy(value(7)))
    assert torch.equal(first, torch.from_numpy(value(9)))


def test_a_tensor_may_be_changed_while_it_is_lent(path: Path) -> None:
    with WeightLoader(path) as loader:
        stream = loader.stream().borrowed()
        for _ in range(2):
            for index, (_, tensor) in enumerate(stream):
                assert torch.equal(tensor, torch.from_numpy(value(index)))
                tensor.fill_(-1)


def test_tied_names_are_lent_memory_of_their_own(tmp_path: Path) -> None:
    root = make_target(tmp_path / "t", [rows(2)], aliases={"head": "layer0"})
    with WeightLoader(root) as loader:
        for _, tensor in loader.stream(["layer0", "head"]).borrowed():
            assert torch.equal(tensor, torch.from_numpy(value(0)))
            tensor.fill_(-1)


def test_async_for_borrows_as_well(path: Path) -> None:
    async def collect(stream: WeightStream) -> list[torch.Tensor]:
        kept, index = [], 0
        async for _, tensor in stream:
            assert torch.equal(tensor, torch.from_numpy(value(index)))
            kept.append(tensor)
            index += 1
        return kept

    with WeightLoader(path, "2MiB") as loader:
        kept = asyncio.run(collect(loader.stream().borrowed()))
    for tensor in kept:
        with pytest.raises(InvalidConfig, match="borrowed"):
            tensor.sum()


def test_what_is_read_from_an_object_store_is_lent(bucket: Bucket, path: Path) -> None:
    bucket.objects.put(f"{bucket.uri}/w.parquet", path.read_bytes())
    with WeightLoader(f"{bucket.uri}/w.parquet", "4MiB", bucket.storage_options) as loader:
        for order in ("given", "arrival"):
            for name, tensor in loader.stream(order=order).borrowed():
                assert torch.equal(tensor, torch.from_numpy(value(int(name.removeprefix("layer")))))


def test_two_borrowed_loops_share_one_budget(path: Path, lenders: list[Lender]) -> None:
    with WeightLoader(path, "1MiB", workers=2) as loader:
        stream = loader.stream().borrowed()
        for (one, first), (other, second) in zip(stream, stream, strict=True):
            assert one == other
            assert torch.equal(first, second)
            assert first.data_ptr() != second.data_ptr()
        assert len(lenders) == 1
        assert lenders[0].resident_nbytes <= MIB + 2 * NBYTES  # those in hand are the loops' own
        assert loader.stats.peak_nbytes <= MIB


def test_borrowed_and_owned_loops_side_by_side_stay_within_the_budget(
    path: Path, lenders: list[Lender]
) -> None:
    """Owned memory in flight has the room that free pages of the lender had."""
    with WeightLoader(path, "1MiB", workers=2) as loader:
        for (_, lent), (_, owned) in zip(loader.stream().borrowed(), loader, strict=True):
            assert torch.equal(lent, owned)
            assert lenders[0].resident_nbytes <= MIB + NBYTES


def test_damage_ends_a_borrowed_stream_in_its_turn(tmp_path: Path) -> None:
    damaged = rows(12)
    damaged[6] = damaged[6].but(data=bytes(NBYTES))
    seen: list[str] = []
    with (
        WeightLoader(write_v2(tmp_path / "w.parquet", damaged)) as loader,
        pytest.raises(CorruptWeights) as caught,
    ):
        seen.extend(name for name, _ in loader.stream().borrowed())
    assert (len(seen), caught.value.layer) == (6, "layer6")


def test_codes_are_not_lent(path: Path) -> None:
    with WeightLoader(path, dequantize=False) as loader, pytest.raises(InvalidConfig, match="only decoded"):
        loader.stream().borrowed()


def test_the_default_is_memory_of_the_callers_own(path: Path, lenders: list[Lender]) -> None:
    with WeightLoader(path, "1MiB") as loader:
        kept = dict(loader)
        kept |= dict(loader.stream())
    assert all(torch.equal(kept[f"layer{i}"], torch.from_numpy(value(i))) for i in range(LAYERS))
    assert not lenders
