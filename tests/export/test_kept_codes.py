"""Codes of GPTQ and AWQ that a dataset keeps are exported to every format with the values they stand for, or refused
with advice that works."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.export import ExportOptions, export_dataset
from arrowquant_dist.export.options import ExportFormatName
from tests.checkpoint.word_models import Words
from tests.export.gguf.models import byte_pairs, save_model
from tests.export.models import DTYPES, RUN

_V, _IN_GGUF = "model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight"  # whose rows keep their order
_KEEP = QuantizationConfig(keep_codes=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_model(folder, "llama", byte_pairs(), num_hidden_layers=1)
    return folder


def _source(
    plain: Path, folder: Path, form: str, bits: int, group: int, zeros: str, dtype: str
) -> dict[str, Words]:
    """The model with each `_proj` in words of `form`, by the layer's name. zeros: `middle` or `any`; `by activation`:
    any, and groups are no runs of inputs."""
    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    stored: dict[str, torch.Tensor] = {}
    words: dict[str, Words] = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            stored[name] = tensor.to(DTYPES[dtype])
            continue
        by_activation = zeros == "by activation"
        made = Words.random(tuple(tensor.shape), bits, group, by_activation=by_activation, seed=len(words))
        if zeros == "middle":
            made.zeros[:] = 1 << (bits - 1)
        words[name] = made
        write = {"gptq": made.gptq, "gemm": made.awq, "gemv": made.gemv}[form]
        stored |= write(name.removesuffix(".weight"))
    save_file({name: t.contiguous() for name, t in stored.items()}, folder / "model.safetensors")
    own = {"quant_method": "gptq"} if form == "gptq" else {"quant_method": "awq", "version": form}
    config = json.loads((folder / "config.json").read_bytes())
    config |= {"quantization_config": {**own, "bits": bits, "group_size": group}, "dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config))
    return words


def _values(words: Words) -> np.ndarray:
    """float64 [outputs, inputs]: (code - zero) · scale, exactly."""
    products: np.ndarray = words.scales.astype(np.float64)[words.groups] * (
        words.codes - words.zeros[words.groups]
    )
    return products.T


def _scales(words: Words) -> np.ndarray:
    """float64 [outputs, inputs]."""
    return np.asarray(words.scales.astype(np.float64)[words.groups].T)


def _export(dataset: Path, out: Path, form: ExportFormatName, **options: Any) -> None:
    export_dataset(dataset, out, ExportOptions(form, **options), RUN)


def _of_compressed_tensors(tensors: Mapping[str, torch.Tensor], name: str, bits: int) -> np.ndarray:
    """float64 values of a packed layer, written out."""
    rows, columns = tensors[f"{name}_shape"].tolist()

    def fields(words: torch.Tensor, count: int) -> np.ndarray:
        stream = np.unpackbits(words.numpy().view(np.uint8), axis=1, bitorder="little")[:, : count * bits]
        unsigned = stream.reshape(len(words), count, bits) @ (1 << np.arange(bits))
        return np.asarray(unsigned.astype(np.int64) - (1 << (bits - 1)))

    codes, scales = fields(tensors[f"{name}_packed"], columns), tensors[f"{name}_scale"].double().numpy()
    zeros = np.zeros(scales.shape, np.int64)
    if f"{name}_zero_point" in tensors:
        zeros = fields(tensors[f"{name}_zero_point"].T.contiguous(), rows).T
    wide = columns // scales.shape[1]
    return np.asarray((codes - zeros.repeat(wide, 1)) * scales.repeat(wide, 1))


_CODES = [
    ("gptq", 4, 32, "middle"),
    ("gptq", 4, 128, "any"),
    ("gptq", 8, 64, "middle"),
    ("gptq", 8, 32, "any"),
    ("gptq", 2, 32, "any"),
    ("gemm", 4, 64, "any"),
    ("gemv", 4, 64, "any"),
    ("gemm", 4, 32, "middle"),
]


@pytest.mark.parametrize(("form", "bits", "group", "zeros"), _CODES)
def test_every_format_has_the_values_that_they_stand_for(
    form: str, bits: int, group: int, zeros: str, plain: Path, tmp_path: Path
) -> None:
    words = _source(plain, tmp_path / "source", form, bits, group, zeros, "float16")
    dataset = tmp_path / "dataset"
    quantize(str(tmp_path / "source"), str(dataset), _KEEP, RUN)

    _export(dataset, tmp_path / "safetensors", "safetensors")
    decoded = load_file(tmp_path / "safetensors/model.safetensors")
    _export(dataset, tmp_path / "v1", "v1")
    (file,) = (tmp_path / "v1").rglob("*.parquet")
    rows = {row["layer_name"]: row for row in pq.read_table(file).to_pylist()}
    _export(dataset, tmp_path / "packed", "compressed-tensors")
    packed = load_file(tmp_path / "packed/model.safetensors")
    for name, made in words.items():
        assert torch.equal(decoded[name], made.weight()), name
        assert rows[name]["data"] == made.weight().numpy().tobytes(), name
        assert np.array_equal(_of_compressed_tensors(packed, name, bits), _values(made)), name
    assert "quantization_config" not in json.loads((tmp_path / "safetensors/config.json").read_bytes())

    is_held = bits == 4 or (bits == 8 and zeros == "middle")
    _export(dataset, tmp_path / "gguf", "gguf", requantize=not is_held)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "gguf/model.gguf").tensors}
    tensor, made = tensors[_IN_GGUF], words[_V]
    found = gguf.dequantize(tensor.data, tensor.tensor_type)
    # minima are rounded; of int8 with zero points codes are chosen anew, in steps of up to twice the size, for values
    # in the source's dtype
    steps = 0.0 if zeros == "middle" else 1.01 if bits == 8 else 0.5
    rounded = 2.0**-11 * np.abs(_values(made)) if bits == 8 else 0.0
    assert (np.abs(found - _values(made)) <= steps * _scales(made) + rounded + 1e-9).all()


def _override(**settings: Any) -> dict[str, Any]:
    return {"overrides": [{"layers": "*_proj.weight", **settings}]}


_ADVICE: dict[
    str, tuple[tuple[str, int, int, str, str], ExportFormatName, dict[str, Any], str, dict[str, Any]]
] = {
    # the source's codes; the format and its options; what the refusal says; what is then said when quantizing
    "scales of fp16 in a bfloat16 model": (
        ("gptq", 4, 64, "middle", "bfloat16"),
        "compressed-tensors",
        {},
        "an override that says quant_type and scale_dtype: bfloat16",
        _override(quant_type="int4", scale_dtype="bfloat16"),
    ),
    "AWQ in a bfloat16 model": (
        ("gemm", 4, 64, "any", "bfloat16"),
        "compressed-tensors",
        {},
        "an override that says quant_type and scale_dtype: bfloat16",
        _override(quant_type="int8", scale_dtype="bfloat16"),
    ),
    "3 bits": (
        ("gptq", 3, 32, "middle", "float16"),
        "compressed-tensors",
        {},
        "an override that says quant_type: int4",
        _override(quant_type="int4"),
    ),
    "W8A8 of groups": (
        ("gptq", 8, 64, "middle", "float16"),
        "compressed-tensors",
        {"activations": "int8"},
        "quant_type: int8, per_channel: true and symmetric: true",
        _override(quant_type="int8", per_channel=True, symmetric=True),
    ),
    "3 bits in GGUF": (
        ("gptq", 3, 32, "any", "float16"),
        "gguf",
        {},
        "an override that says quant_type: int8 and symmetric: true",
        _override(quant_type="int8", symmetric=True),
    ),
    "int8 with zero points in GGUF": (
        ("gptq", 8, 32, "any", "float16"),
        "gguf",
        {},
        "an override that says quant_type: int8 and symmetric: true",
        _override(quant_type="int8", symmetric=True),
    ),
    "2 bits in GGUF": (
        ("gptq", 2, 64, "middle", "bfloat16"),
        "gguf",
        {},
        "an override that says quant_type: int8 and symmetric: true",
        _override(quant_type="int8", symmetric=True),
    ),
}


@pytest.mark.parametrize("case", _ADVICE)
def test_what_is_refused_is_written_once_the_advice_is_followed(
    case: str, plain: Path, tmp_path: Path
) -> None:
    codes, form, options, advice, settings = _ADVICE[case]
    _source(plain, tmp_path / "source", *codes)
    source, dataset = str(tmp_path / "source"), tmp_path / "dataset"
    quantize(source, str(dataset), _KEEP, RUN)
    with pytest.raises(InvalidConfig, match=rf"_proj\.weight.*{re.escape(advice)}.*--requantize"):
        _export(dataset, tmp_path / "out", form, **options)
    assert not (tmp_path / "out").exists()
    _export(dataset, tmp_path / "requantized", form, requantize=True, **options)
    _export(dataset, tmp_path / "anew", form, requantize=True, source=source, **options)
    quantize(
        source, str(tmp_path / "again"), QuantizationConfig.from_dict({"keep_codes": True, **settings}), RUN
    )
    _export(tmp_path / "again", tmp_path / "out", form, **options)


def test_groups_by_activation_are_not_kept_and_what_is_said_then_works_in_every_format(
    plain: Path, tmp_path: Path
) -> None:
    words = _source(plain, tmp_path / "source", "gptq", 4, 32, "by activation", "float16")
    source = str(tmp_path / "source")
    with pytest.raises(InvalidConfig, match=r"desc_act.*\{layers: …, quant_type: int8\}"):
        quantize(source, str(tmp_path / "dataset"), _KEEP, RUN)
    settings = {"keep_codes": True, **_override(quant_type="int8", scale_dtype="bfloat16")}
    quantize(source, str(tmp_path / "dataset"), QuantizationConfig.from_dict(settings), RUN)
    _export(tmp_path / "dataset", tmp_path / "out", "safetensors")
    decoded = load_file(tmp_path / "out/model.safetensors")
    for name, made in words.items():
        whole = _values(made)
        assert np.abs(decoded[name].double().numpy() - whole).max() <= np.abs(whole).max() / 200
