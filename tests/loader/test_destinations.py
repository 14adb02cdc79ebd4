"""Values decoded straight into existing memory are the same as in memory of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrowquant_dist import TensorParallel, WeightLoader
from arrowquant_dist.dataset.assemble import Assembler
from arrowquant_dist.dataset.prefetch import Load
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.errors import CorruptWeights, InvalidConfig, ModelMismatch
from tests.format.encoder import kept_row, random_row, write_v2

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    rows = [
        random_row(rng, "w", 6, 10, "int4", group_size=4, symmetric=False, layer_shape=[9, 10]),
        random_row(rng, "w", 3, 10, "int4", group_size=4, layer_shape=[9, 10], row_start=6),
        kept_row("kept", rng.standard_normal((3, 4)).astype("<f4"), "float32"),
        kept_row("ids", np.arange(6, dtype="<i8"), "int64"),
        kept_row("mask", np.array([True, False, True]), "bool"),
    ]
    return write_v2(tmp_path / "w.parquet", rows)


@pytest.fixture
def fresh_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The layers that were decoded into memory of their own."""
    names: list[str] = []
    plain: Callable[..., Load[np.ndarray]] = Assembler.values

    def values(
        assembler: Assembler, region: Region, dtype: str, out: np.ndarray | None = None, **more: Any
    ) -> Load[np.ndarray]:
        if out is None:
            names.append(region.layer.name)
        return plain(assembler, region, dtype, out, **more)

    monkeypatch.setattr(Assembler, "values", values)
    return names


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["w", "kept"])
def test_a_tensor_is_filled_with_its_own_dtype_and_nowhere_else_first(
    path: Path, name: str, dtype: torch.dtype, fresh_loads: list[str]
) -> None:
    expected = WeightLoader(path, dtype=dtype)[name]
    fresh_loads.clear()
    loader = WeightLoader(path)
    around = torch.full((expected.shape[0] + 2, expected.shape[1]), 7.0, dtype=dtype)
    place = around[1:-1]  # in the middle of other memory, which stays as it is
    loader.read_into(name, place)
    assert torch.equal(place, expected)
    assert (around[0] == 7).all()
    assert (around[-1] == 7).all()
    assert fresh_loads == []
    assert loader.stats.peak_nbytes < around.nbytes + 2000


def test_parts_are_read_into_tensors_of_their_shape(path: Path, fresh_loads: list[str]) -> None:
    loader = WeightLoader(path)
    whole = loader["w"]
    fresh_loads.clear()
    rows, rank = torch.empty(4, 5), torch.empty(9, 3)
    loader.read_into("w", rows, slice(3, 7), slice(2, 7))
    loader.read_into("w", rank, parallel=TensorParallel(1, 3, 1))
    assert torch.equal(rows, whole[3:7, 2:7])
    assert torch.equal(rank, whole[:, 4:7])
    assert fresh_loads == []


@pytest.mark.parametrize(
    "place",
    [
        lambda: torch.empty(10, 9).t(),
        lambda: torch.empty(9, 20)[:, ::2],
        lambda: torch.empty(9, 10, dtype=torch.complex64),
        lambda: torch.zeros(9, 11, dtype=torch.uint8).view(torch.uint8)[:, :10].clone().float(),
    ],
)
def test_other_memory_is_copied_to(path: Path, place: Callable[[], torch.Tensor]) -> None:
    tensor = place()
    loader = WeightLoader(path)
    loader.read_into("w", tensor)
    assert torch.equal(tensor, loader["w"].to(tensor.dtype))


def test_whole_numbers_and_bools_go_into_their_own_dtypes_and_wider_ones(path: Path) -> None:
    loader = WeightLoader(path)
    for dtype in (torch.int64, torch.int16, torch.float32):
        ids = torch.empty(6, dtype=dtype)
        loader.read_into("ids", ids)
        assert ids.tolist() == [0, 1, 2, 3, 4, 5]
    mask = torch.empty(3, dtype=torch.bool)
    loader.read_into("mask", mask)
    assert mask.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.empty(10, 9), r"has shape \[9, 10\], but the tensor has \[10, 9\]"),
        (torch.empty(9, 10, dtype=torch.int32), "is float32, but the tensor is int32"),
        (torch.empty(9, 10, device="meta"), "not a plain tensor, so it cannot be filled"),
        (torch.empty(1, 10).expand(9, 10), "not a plain tensor, so it cannot be filled"),
        (torch.empty(50).as_strided((9, 10), (5, 1)), "not a plain tensor, so it cannot be filled"),
        (torch.empty(18).unfold(0, 10, 1), "not a plain tensor, so it cannot be filled"),
        (np.empty((9, 10), np.float32), "fills a torch tensor, not a value of type ndarray"),
        (None, "fills a torch tensor, not None"),
    ],
)
def test_what_cannot_be_filled_says_so_before_anything_is_read(path: Path, tensor: Any, said: str) -> None:
    loader = WeightLoader(path)
    with pytest.raises(InvalidConfig, match=said) as caught:
        loader.read_into("w", tensor)
    assert caught.value.layer == "w"
    assert loader.stats.nbytes_read == 0


def test_what_torch_does_not_copy_to_is_refused_by_layer(tmp_path: Path) -> None:
    with torch.inference_mode():
        frozen = torch.empty(20, 2).t()
    path = write_v2(tmp_path / "large.parquet", [kept_row("ids", np.full((2, 20), 300, "<i8"), "int64")])
    for tensor in (frozen, torch.empty(2, 20, dtype=torch.uint8)):
        with pytest.raises(InvalidConfig, match="cannot be copied into the tensor") as caught:
            WeightLoader(path).read_into("ids", tensor)
        assert caught.value.layer == "ids"


def test_windows_that_overlap_are_no_parameters_to_fill(path: Path) -> None:
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(torch.zeros(50).as_strided((9, 10), (5, 1)))
    with pytest.raises(ModelMismatch, match="share one place in memory: 'w'"):
        WeightLoader(path).load_into(module, strict=False)
    assert not module.w.any()


@pytest.mark.parametrize("progress", [5, "bar", [print]])
def test_a_progress_that_cannot_be_called_is_refused_at_once(path: Path, progress: Any) -> None:
    loader = WeightLoader(path)
    with pytest.raises(InvalidConfig, match=r"progress is .*pass a function"):
        loader.stream(progress=progress)
    with pytest.raises(InvalidConfig, match=r"progress is .*pass a function"):
        loader.load_into(torch.nn.Module(), strict=False, progress=progress)


@pytest.mark.parametrize("name", [None, 5, ["w"], b"w"])
def test_what_is_no_name_of_a_layer_is_refused_in_each_way(path: Path, name: Any) -> None:
    loader = WeightLoader(path)
    for ask in (loader.layer, loader.read, loader.decoded_dtype, loader.__getitem__):
        with pytest.raises(InvalidConfig, match="a layer's name has to be a string"):
            ask(name)


def test_autograd_hears_that_values_were_changed(path: Path) -> None:
    """As of any change in place: a graph that needs the old values fails instead of taking the new ones."""
    loader = WeightLoader(path)
    weight = torch.nn.Parameter(torch.ones(9, 10))
    result = (weight * weight).sum()
    loader.read_into("w", weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(result)
    with torch.inference_mode():
        frozen = torch.empty(9, 10)
        loader.read_into("w", frozen)
    assert torch.equal(frozen, loader["w"])


class Layers(torch.nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(9, 10, dtype=dtype))
        self.kept = torch.nn.Parameter(torch.zeros(4, 3, dtype=dtype).t())
        self.register_buffer("ids", torch.zeros(6, dtype=torch.int64))
        self.register_buffer("mask", torch.zeros(3, dtype=torch.bool))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_modules_contiguous_tensors_are_decoded_into(
    path: Path, dtype: torch.dtype, fresh_loads: list[str]
) -> None:
    expected = dict(iter(WeightLoader(path, dtype=dtype)))
    fresh_loads.clear()
    module = Layers(dtype)
    before = {key: value.data_ptr() for key, value in module.state_dict().items()}
    told: list[tuple[int, int, str]] = []
    WeightLoader(path).load_into(module, progress=lambda *said: told.append(said))
    for key, value in module.state_dict().items():
        assert torch.equal(value, expected[key]), key
        assert value.data_ptr() == before[key]
    assert fresh_loads == ["kept"]  # which is transposed
    assert [name for _, _, name in told] == ["w", "kept", "ids", "mask"]
    assert told[-1][0] == told[-1][1]


def test_no_thread_writes_into_a_module_after_an_error(tmp_path: Path) -> None:
    """The threads have ended when the error is raised, though many layers were read ahead."""
    rng = np.random.default_rng(0)
    rows = [kept_row(f"l{i}", rng.standard_normal((64, 64)).astype("<f4"), "float32") for i in range(30)]
    rows[1] = rows[1].but(data=bytes(64 * 64 * 4))
    module = torch.nn.Module()
    for i in range(30):
        module.register_parameter(f"l{i}", torch.nn.Parameter(torch.zeros(64, 64)))
    loader = WeightLoader(write_v2(tmp_path / "w.parquet", rows), workers=4)
    with pytest.raises(CorruptWeights) as caught:
        loader.load_into(module)
    assert caught.value.layer == "l1"
    values = [value.clone() for value in module.parameters()]
    for value in module.parameters():
        value.data.fill_(-1.0)
    assert all((value == -1).all() for value in module.parameters())
    assert torch.equal(values[0], torch.from_numpy(rows[0].decoded))
    assert not values[1].any()


def test_an_untied_copy_of_a_tied_name_has_memory_of_its_own(tmp_path: Path) -> None:
    """One of them on the meta device, one that is decoded into directly."""
    from tests.target.targets import make_target

    row = kept_row("embed", np.arange(6, dtype="<f4").reshape(2, 3), "float32")
    make_target(tmp_path / "t", [[row]], aliases={"head": "embed"})
    module = torch.nn.Module()
    module.register_parameter("embed", torch.nn.Parameter(torch.zeros(2, 3)))
    module.register_parameter("head", torch.nn.Parameter(torch.zeros(2, 3, device="meta")))
    WeightLoader(tmp_path / "t").load_into(module)
    embed, head = module.get_parameter("embed"), module.get_parameter("head")
    assert embed.tolist() == head.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert embed.data_ptr() != head.data_ptr()
    assert not head.is_meta
