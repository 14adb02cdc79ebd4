"""Tensors of every kind, with names of every kind, are read back unchanged by the format's own reader."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.export import ExportOptions, export_dataset
from tests.export.datasets import SMALL_BLOCKS, loaded, same, tensors_of


def _odd() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tied = normal(331, 64)
    return {
        "embed_tokens.weight": tied,
        "lm_head.weight": tied,
        "one_column.weight": normal(300, 1),
        "one_row.weight": normal(1, 300),
        "no_rows.weight": torch.zeros(0, 7),
        "no_columns": torch.zeros(5, 0),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "positions": torch.arange(9),
        "mask": torch.tensor([[True, False], [False, True]]),
        "float8.weight": normal(16, 32).to(torch.float8_e5m2),
        "naïve.日本語.weight": normal(64, 96),
        "x" * 4000 + ".weight": normal(8, 40),
        'q"uo\\te\n.weight': normal(40, 40),
        "dots..double.": normal(33, 31),
        "wide.weight": normal(40, 33).double() * 1e-40,
        "small.weight": (normal(70, 50) * 1e-6).half(),
        "large.weight": (normal(64, 77) * 1e30).bfloat16(),
        "codes.weight": torch.arange(30, dtype=torch.int8).reshape(5, 6),
        "conv.weight": normal(8, 4, 3, 3),
        "experts.gate_up_proj": normal(4, 24, 40),
        "a_file.weight": normal(512, 512),  # exactly 1 MiB each
        "another.weight": normal(512, 512),
    }


def _dataset(folder: Path, tensors: dict[str, torch.Tensor], config: QuantizationConfig) -> str:
    (folder / "source").mkdir()
    torch.save(tensors, folder / "source/pytorch_model.bin")
    quantize(str(folder / "source"), str(folder / "dataset"), config, SMALL_BLOCKS)
    return str(folder / "dataset")


@pytest.mark.parametrize(
    "config",
    [
        QuantizationConfig("int8", unscaled_float8=["float8"]),
        QuantizationConfig(
            "int4", per_channel=False, group_size=32, symmetric=False, unscaled_float8=["float8"]
        ),
        QuantizationConfig("fp16", unscaled_float8=["float8"]),
    ],
    ids=["int8", "int4", "fp16"],
)
def test_they_are_what_our_loader_reads(config: QuantizationConfig, tmp_path: Path) -> None:
    tensors = _odd()
    dataset = _dataset(tmp_path, tensors, config)
    expected = loaded(dataset)
    assert expected.keys() == tensors.keys()
    for size in ("1MiB", "1GiB"):
        out = tmp_path / f"safetensors-{size}"
        export_dataset(dataset, out, ExportOptions(max_file_bytes=size))
        assert same(tensors_of(out), expected)
        assert len(list(out.glob("*.safetensors"))) == (3 if size == "1MiB" else 1)
    export_dataset(dataset, tmp_path / "v1", ExportOptions("v1", max_file_bytes="1MiB"))
    found = {}
    for file in (tmp_path / "v1").rglob("*.parquet"):
        for row in pq.read_table(file).to_pylist():
            assert row["layer_name"] not in found
            dtype = getattr(torch, row["dtype"])
            values = torch.tensor(list(row["data"]), dtype=torch.uint8).view(dtype)
            found[row["layer_name"]] = values.reshape(row["shape"])
    assert same(found, expected)


def test_a_tensor_with_the_name_of_a_header_s_metadata_is_refused(tmp_path: Path) -> None:
    """A reader would take the file for a broken one."""
    tensors = {"__metadata__": torch.randn(32, 32), "a.weight": torch.randn(32, 32)}
    dataset = _dataset(tmp_path, tensors, QuantizationConfig("int8"))
    with pytest.raises(InvalidConfig, match=r"cannot have a tensor called __metadata__; rename it .*v1"):
        export_dataset(dataset, tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out").exists()
    export_dataset(dataset, tmp_path / "out", ExportOptions("v1"))
