"""Layers that cannot be written are refused by name before the first byte, and --requantize writes them in the nearest
way."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from arrowquant_dist import QuantizationConfig, RunConfig, WeightLoader, quantize_tensor
from arrowquant_dist.errors import CorruptWeights, InvalidConfig
from arrowquant_dist.export import ExportOptions
from arrowquant_dist.export.run import open_model
from tests.export.datasets import made_dataset
from tests.export.models import exported

_Q, _K, _V = (f"model.layers.0.self_attn.{own}_proj.weight" for own in "qkv")
_GATE, _UP, _DOWN = (f"model.layers.0.mlp.{own}_proj.weight" for own in ("gate", "up", "down"))
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_KEEP = ["embed", "lm_head"]


def _weights(columns: int = 128, **more: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = {
        **dict.fromkeys((_EMBED, _HEAD), (160, columns)),
        **dict.fromkeys((_Q, _K, _V, _GATE, _UP), (64, columns)),
        _DOWN: (columns, 64),
        "model.norm.weight": (columns,),
        **more,
    }
    return {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}


def _dataset(
    folder: Path,
    settings: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
) -> str:
    described = {"model_type": "llama", "dtype": "float32", "tie_word_embeddings": False, **(config or {})}
    side_files = {"config.json": json.dumps(described).encode()}
    quantization = QuantizationConfig.from_dict({"mixed_precision_layers": _KEEP, **settings})
    return made_dataset(folder, tensors or _weights(), quantization, side_files=side_files)


def _out(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, and `quantization_config`."""
    config = json.loads((folder / "out/config.json").read_bytes())
    return load_file(folder / "out/model.safetensors"), config.get("quantization_config", {})


def _groups(settings: Mapping[str, Any]) -> list[tuple[int, int | None, bool]]:
    """(bits, group size, symmetric) of each group."""
    weights = [group["weights"] for group in settings["config_groups"].values()]
    return [(w["num_bits"], w.get("group_size"), w["symmetric"]) for w in weights]


_INT4: dict[str, Any] = {"quant_type": "int4", "per_channel": False, "group_size": 32}
_REAL = {**_INT4, "symmetric": False}
_CASES: dict[str, tuple[dict[str, Any], str, list[tuple[int, int | None, bool]]]] = {
    "real zero points": (
        _REAL,
        "zero points that are not whole numbers.*integer_zero_points: true",
        [(4, 32, False)],
    ),
    "real zero points by row": (
        {"quant_type": "int8", "symmetric": False},
        "zero points that are not whole numbers",
        [(8, None, False)],
    ),
    "int3": ({**_INT4, "quant_type": "int3"}, "int3, .*quantize to int4", [(4, 32, True)]),
    "int3 with real zero points": ({**_REAL, "quant_type": "int3"}, "int3", [(4, 32, False)]),
    "one scale with a real zero point": (
        {"quant_type": "int4", "per_channel": False, "group_size": 0, "symmetric": False},
        "zero points that are not whole numbers",
        [(4, None, False)],
    ),
}


@pytest.mark.parametrize("case", _CASES)
def test_what_the_format_has_not_is_refused_and_requantized(case: str, tmp_path: Path) -> None:
    settings, message, nearest = _CASES[case]
    dataset = _dataset(tmp_path, settings)
    with pytest.raises(InvalidConfig, match=f"layers.0.self_attn.q_proj.weight.*{message}.*--requantize"):
        exported(dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    made = exported(dataset, tmp_path / "out", requantize=True)
    tensors, written = _out(tmp_path)
    assert _groups(written) == nearest
    fate = "the same values as int4" if case == "int3" else "requantized"
    assert any(_DOWN in note and fate in note for note in made.record.notes)
    if not nearest[0][2]:
        assert tensors[_Q.replace("weight", "weight_zero_point")].dtype == torch.int32


@pytest.mark.parametrize(
    ("columns", "group_size", "nearest"),
    [(160, 64, 32), (144, 64, 48), (320, 256, 64), (100, 32, 25), (94, 32, None)],
)
def test_a_short_last_group_becomes_one_that_divides_or_a_row(
    columns: int, group_size: int, nearest: int | None, tmp_path: Path
) -> None:
    weights = {name: weight for name, weight in _weights(columns).items() if name != _DOWN}
    dataset = _dataset(tmp_path, {**_INT4, "group_size": group_size}, weights)
    with pytest.raises(
        InvalidConfig, match=rf"a short last group \({columns} columns in groups of {group_size}\)"
    ):
        exported(dataset, tmp_path / "out")
    made = exported(dataset, tmp_path / "out", requantize=True)
    assert _groups(_out(tmp_path)[1]) == [(4, nearest, True)]
    is_cut = nearest is not None and group_size % nearest == 0
    assert ("the same values as" if is_cut else "requantized") in made.record.notes[0]


def test_a_group_of_all_columns_or_more_is_a_row(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, {**_INT4, "group_size": 4096})
    assert exported(dataset, tmp_path / "out").record.notes == ()
    assert _groups(_out(tmp_path)[1]) == [(4, None, True)]


def test_values_are_taken_from_the_source_where_one_is_given(tmp_path: Path) -> None:
    weights = _weights()
    dataset = _dataset(tmp_path, {**_INT4, "quant_type": "int3"}, weights)
    exported(dataset, tmp_path / "out", requantize=True, source=str(tmp_path / "source"))
    best = quantize_tensor(weights[_Q], QuantizationConfig("int4", per_channel=False, group_size=32))
    tensors, _ = _out(tmp_path)
    assert torch.equal(tensors[_Q + "_scale"].reshape(-1), torch.from_numpy(best.scales))
    assert tensors[_Q + "_packed"].numpy().tobytes() == best.codes.tobytes()
    exported(dataset, tmp_path / "again", requantize=True)
    assert not torch.equal(
        load_file(tmp_path / "again/model.safetensors")[_Q + "_packed"], tensors[_Q + "_packed"]
    )


def test_what_is_not_quantized_has_the_source_s_values_where_one_is_given(tmp_path: Path) -> None:
    weights = _weights()
    dataset = _dataset(tmp_path, {"quant_type": "int2", "mixed_precision_layers": ["lm_head"]}, weights)
    made = exported(dataset, tmp_path / "out", requantize=True, source=str(tmp_path / "source"))
    assert torch.equal(_out(tmp_path)[0][_EMBED], weights[_EMBED])
    assert any(
        note.startswith(f"{_EMBED} not quantized, the source's values: ") for note in made.record.notes
    )


def test_scales_that_would_be_rounded_are_chosen_anew_from_a_source(tmp_path: Path) -> None:
    weights = {name: weight.bfloat16() for name, weight in _weights().items()}
    settings = {"quant_type": "int8", "scale_dtype": "float32"}
    dataset = _dataset(tmp_path, settings, weights, {"dtype": "bfloat16"})
    exported(dataset, tmp_path / "out", requantize=True, source=str(tmp_path / "source"))
    best = quantize_tensor(weights[_Q], QuantizationConfig("int8", scale_dtype="bfloat16", method="rtn"))
    tensors, _ = _out(tmp_path)
    assert torch.equal(tensors[_Q + "_scale"].float().reshape(-1), torch.from_numpy(best.scales))
    assert tensors[_Q + "_packed"].numpy().tobytes() == (best.codes ^ 0x80).tobytes()


def _small_row(weights: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    """Of all members of a set that readers make one of."""
    for name in (_Q, _K, _V):
        weights[name][7] *= factor
    return weights


_MODEL_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize(
    ("dtype", "factor"), [("float16", 1e-5), ("float16", 1e-9), ("float16", 1e9), ("bfloat16", 1e-38)]
)
def test_scales_with_which_values_would_be_others_are_refused_and_the_layer_kept(
    dtype: str, factor: float, tmp_path: Path
) -> None:
    """Rounding to a dtype that has few digits for such numbers, or none, is not what --requantize means."""
    dataset = _dataset(tmp_path, {"quant_type": "int8"}, _small_row(_weights(), factor), {"dtype": dtype})
    with pytest.raises(InvalidConfig, match=f"{_Q}.*scales that {dtype}.* and values with them") as raised:
        exported(dataset, tmp_path / "out")
    advice = "scale_dtype: bfloat16" if dtype == "bfloat16" else "mixed_precision_layers"
    assert advice in str(raised.value)
    made = exported(dataset, tmp_path / "out", requantize=True)
    tensors, written = _out(tmp_path)
    with WeightLoader(dataset) as loader:
        assert torch.equal(tensors[_Q], loader[_Q])
    assert _Q.removesuffix(".weight") in written["ignore"]
    assert any(_Q in note and "not quantized: scales" in note for note in made.record.notes)
    exported(dataset, tmp_path / "of-source", requantize=True, source=str(tmp_path / "source"))
    tensors = load_file(tmp_path / "of-source/model.safetensors")
    assert torch.equal(tensors[_Q], load_file(tmp_path / "source/model.safetensors")[_Q])


@pytest.mark.parametrize("dtype", _MODEL_DTYPES)
@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("values", ["dataset", "source"])
def test_what_requantize_writes_decodes_to_the_values_within_half_a_step(
    dtype: str, group_size: int, values: str, tmp_path: Path
) -> None:
    """By a reader that has scales in the model's dtype and computes in float32."""
    weights = _small_row(_weights(), 0.03)  # in float16 such a row's scales have some digits less
    settings = {"quant_type": "int8", "per_channel": not group_size, "group_size": group_size or 128}
    dataset = _dataset(tmp_path, settings, weights, {"dtype": dtype})
    source = str(tmp_path / "source") if values == "source" else None
    exported(dataset, tmp_path / "out", requantize=True, source=source)
    tensors, _ = _out(tmp_path)
    with WeightLoader(dataset) as loader:
        expected = weights[_Q] if values == "source" else loader[_Q]
    scales = tensors[f"{_Q}_scale"]
    assert scales.dtype == _MODEL_DTYPES[dtype]
    steps = scales.float().repeat_interleave(128 // scales.shape[1], 1)
    codes = tensors[f"{_Q}_packed"].view(torch.uint8).int() - 128
    assert ((codes * steps - expected).abs() <= 0.501 * steps).all()


def test_a_quantized_embedding_is_refused_and_written_in_the_source_s_dtype(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, {"quant_type": "int8", "mixed_precision_layers": ["lm_head"]})
    with pytest.raises(
        InvalidConfig, match=r"model.embed_tokens.weight: an embedding.*mixed_precision_layers"
    ):
        exported(dataset, tmp_path / "out")
    made = exported(dataset, tmp_path / "out", requantize=True)
    tensors, _ = _out(tmp_path)
    with WeightLoader(dataset) as loader:
        assert torch.equal(tensors[_EMBED], loader[_EMBED])
    assert made.record.notes == (
        f"{_EMBED} not quantized: an embedding, which transformers does not load quantized",
    )


@pytest.mark.parametrize(
    ("name", "shape", "model_type", "reason"),
    [
        ("transformer.h.0.attn.c_attn.weight", (64, 192), "gpt2", "a Conv1D"),
        ("transformer.h.0.mlp.c_fc.weight", (64, 192), "unheard_of", "a Conv1D"),
        ("model.conv1.weight", (64, 3, 3, 3), "whisper", "not a matrix but a convolution"),
        ("model.layers.0.mixer.in_proj_weight", (64, 192), "llama", "no module's weight"),
        ("model.layers.0.frobnicator.weight", (64, 192), "llama", "not known by its name to be a Linear"),
        ("encoder.layer.0.attention.self.query.weight", (64, 64), "ibert", "not known by its name"),
        ("encoder.token_embeddings.0.weight", (64, 64), "sam", "an embedding"),
    ],
)
def test_what_is_no_linear_or_may_be_none_is_refused_and_kept(
    name: str, shape: tuple[int, ...], model_type: str, reason: str, tmp_path: Path
) -> None:
    weights = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1))}
    dataset = _dataset(
        tmp_path, {"quant_type": "int8", "mixed_precision_layers": []}, weights, {"model_type": model_type}
    )
    with pytest.raises(InvalidConfig, match=f"{name}: {reason}"):
        exported(dataset, tmp_path / "out")
    made = exported(dataset, tmp_path / "out", requantize=True)
    tensors, written = _out(tmp_path)
    with WeightLoader(dataset) as loader:
        assert torch.equal(tensors[name], loader[name])
    assert written == {}
    assert made.record.notes[-1] == "nothing in it is quantized, and its config.json names no quantization"


def test_a_router_is_refused_where_an_override_quantizes_it(tmp_path: Path) -> None:
    block = "model.layers.0.mlp"
    shapes = {f"{block}.gate.weight": (4, 64)}
    shapes |= {
        f"{block}.experts.{i}.{own}_proj.weight": (64, 64) for i in range(4) for own in ("gate", "up", "down")
    }
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    overrides = [{"layers": f"{block}.gate.weight", "quant_type": "int8"}]
    dataset = _dataset(
        tmp_path, {"quant_type": "int8", "overrides": overrides}, weights, {"model_type": "qwen3_moe"}
    )
    with pytest.raises(InvalidConfig, match=r"mlp.gate.weight: not known by its name to be a Linear"):
        exported(dataset, tmp_path / "out")
    exported(dataset, tmp_path / "out", requantize=True)
    assert _out(tmp_path)[1]["ignore"] == [f"{block}.gate", "lm_head"]


_FUSED = [
    ([{"layers": "*.k_proj.weight", "quant_type": "int8"}], _K, "int4 in groups of 32, int8 in groups of 32", (8, 32)),
    ([{"layers": "*.v_proj.weight", "group_size": 64}], _V, "int4 in groups of 32, int4 in groups of 64", (4, 32)),
    ([{"layers": "*.up_proj.weight", "per_channel": True}], _UP, "int4 by row, int4 in groups of 32", (4, 32)),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "other", "ways", "widest"), _FUSED)
def test_fused_layers_of_several_schemes_are_refused_and_get_the_widest(
    overrides: list[dict[str, Any]],
    other: str,
    ways: str,
    widest: tuple[int, int | None],
    tmp_path: Path,
) -> None:
    dataset = _dataset(tmp_path, {**_INT4, "overrides": overrides})
    with pytest.raises(
        InvalidConfig, match=rf"in different ways \({ways}\), but readers have one for model.layers.0"
    ):
        exported(dataset, tmp_path / "out")
    made = exported(dataset, tmp_path / "out", requantize=True)
    assert len(made.record.notes) == 1
    tensors, settings = _out(tmp_path)
    of_fused = [w for w in (_Q, _K, _V) if other in (_Q, _K, _V)] or [_GATE, _UP]
    packed = {(tensors[name + "_packed"].shape, tensors[name + "_scale"].shape[1]) for name in of_fused}
    assert len(packed) == 1
    assert widest in {(bits, group) for bits, group, _ in _groups(settings)}


def test_a_kept_member_of_a_fused_set_keeps_the_others(tmp_path: Path) -> None:
    dataset = _dataset(
        tmp_path, {**_INT4, "overrides": [{"layers": "*.q_proj.weight", "quant_type": "fp16"}]}
    )
    with pytest.raises(
        InvalidConfig, match=r"k_proj.weight, .*v_proj.weight: stored in different ways \(.*not quantized.*\)"
    ):
        exported(dataset, tmp_path / "out")
    exported(dataset, tmp_path / "out", requantize=True)
    tensors, settings = _out(tmp_path)
    assert {_Q, _K, _V} <= tensors.keys()
    assert {name.removesuffix(".weight") for name in (_Q, _K, _V)} <= set(settings["ignore"])


@pytest.mark.parametrize(
    "settings",
    [_INT4, {"quant_type": "int8", "symmetric": False, "integer_zero_points": True}, {"quant_type": "int4"}],
)
def test_int8_activations_need_int8_codes_by_row(settings: dict[str, Any], tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, settings)
    with pytest.raises(InvalidConfig, match="--activations int8 needs int8 codes with one scale per row"):
        exported(dataset, tmp_path / "out", activations="int8")
    exported(dataset, tmp_path / "out", activations="int8", requantize=True)
    tensors, written = _out(tmp_path)
    assert tensors[_Q].dtype == torch.int8
    assert tensors[_Q + "_scale"].dtype == torch.float32
    [group] = written["config_groups"].values()
    assert group == {
        "targets": ["Linear"],
        "format": "int-quantized",
        "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
        "input_activations": {
            "num_bits": 8,
            "type": "int",
            "symmetric": True,
            "dynamic": True,
            "strategy": "token",
        },
    }


def test_rows_that_were_kept_in_part_are_refused_and_all_kept(tmp_path: Path) -> None:
    weights = _weights()
    weights[_DOWN] = torch.randn(600, 128)
    weights[_DOWN][500, 3] = float("nan")
    dataset = _dataset(tmp_path, {"quant_type": "int8", "non_finite": "keep"}, weights)
    with pytest.raises(InvalidConfig, match=f"{_DOWN}: its rows are not all quantized"):
        exported(dataset, tmp_path / "out")
    exported(dataset, tmp_path / "out", requantize=True)
    tensors, _ = _out(tmp_path)
    with WeightLoader(dataset) as loader:
        assert torch.equal(tensors[_DOWN].nan_to_num(7), loader[_DOWN].nan_to_num(7))


def test_a_head_that_the_config_ties_is_not_written_quantized(tmp_path: Path) -> None:
    dataset = _dataset(
        tmp_path,
        {"quant_type": "int8", "mixed_precision_layers": ["embed"]},
        config={"tie_word_embeddings": True},
    )
    with pytest.raises(InvalidConfig, match=r"lm_head.weight: a head that config.json ties to the embedding"):
        exported(dataset, tmp_path / "out")


@pytest.mark.parametrize("config", [b"{}", b"[1]", b'{"model_type": null}', None])
def test_a_dataset_without_a_model_s_config_is_refused(config: bytes | None, tmp_path: Path) -> None:
    side_files = {} if config is None else {"config.json": config}
    dataset = made_dataset(tmp_path, _weights(), QuantizationConfig("int8"), side_files=side_files)
    with pytest.raises(InvalidConfig, match=r"no config.json with a model_type"):
        exported(dataset, tmp_path / "out")


@pytest.mark.parametrize("value", [["llama"], 7, {"a": 1}, True, ""], ids=repr)
@pytest.mark.parametrize("field", ["model_type", "dtype", "torch_dtype"])
def test_a_field_of_the_config_that_is_no_text_is_refused_by_name(
    field: str, value: object, tmp_path: Path
) -> None:
    dataset = _dataset(tmp_path, {"quant_type": "int8"}, config={"dtype": None, field: value})
    with pytest.raises(InvalidConfig, match=rf"config\.json: {field} has to be a string") as raised:
        exported(dataset, tmp_path / "out")
    assert raised.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_every_reason_is_named_at_once(tmp_path: Path) -> None:
    overrides = [{"layers": "*.down_proj.weight", "quant_type": "int3"}]
    dataset = _dataset(tmp_path, {**_REAL, "mixed_precision_layers": [], "overrides": overrides})
    with pytest.raises(InvalidConfig) as raised:
        exported(dataset, tmp_path / "out")
    for word in ("an embedding", "int3", "not whole numbers", _EMBED, _DOWN, _GATE):
        assert word in str(raised.value)


def test_settings_of_the_source_s_own_quantization_do_not_come_along(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "fp8"}, "compression_config": {}, "model_type": "llama"}
    side_files = {"config.json": json.dumps(config).encode(), "quantize_config.json": b"{}"}
    quantization = QuantizationConfig("int8", mixed_precision_layers=_KEEP)
    dataset = made_dataset(tmp_path, _weights(), quantization, side_files=side_files)
    exported(dataset, tmp_path / "out")
    out = json.loads((tmp_path / "out/config.json").read_bytes())
    assert out["quantization_config"]["quant_method"] == "compressed-tensors"
    assert "compression_config" not in out
    assert out["dtype"] == "float32"  # what the config was silent about
    assert not (tmp_path / "out/quantize_config.json").exists()


def test_runs_of_rows_add_up_to_the_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero points of several rows share a word: a layer that is written in many steps is what it is in one."""
    weights = {_UP: torch.randn(1500, 128, generator=torch.Generator().manual_seed(2))}
    settings = {**_INT4, "symmetric": False, "integer_zero_points": True}
    dataset = _dataset(tmp_path, settings, weights)
    exported(dataset, tmp_path / "whole")
    monkeypatch.setattr("arrowquant_dist.export.steps.RUN_NBYTES", 20_000)
    exported(dataset, tmp_path / "out")
    found, whole = _out(tmp_path)[0], load_file(tmp_path / "whole/model.safetensors")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    with WeightLoader(dataset) as loader:
        decoded = loader[_UP]
    codes = _unpacked(found[f"{_UP}_packed"], 128)
    zeros = _unpacked(found[f"{_UP}_zero_point"].T.contiguous(), 1500).T
    assert found[f"{_UP}_shape"].tolist() == [1500, 128]
    values = (codes - zeros.repeat_interleave(32, 1)) * found[f"{_UP}_scale"].repeat_interleave(32, 1)
    assert torch.equal(values, decoded)


def _unpacked(words: torch.Tensor, columns: int) -> torch.Tensor:
    """Codes of 4 bits, the first in the lowest bits of an int32."""
    shifts = torch.arange(0, 32, 4)
    return ((words[:, :, None].long() >> shifts) & 15).reshape(len(words), -1)[:, :columns] - 8


def test_a_flipped_byte_of_the_scales_is_found_before_anything_is_written(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, _INT4)
    block = open_model(dataset, ExportOptions(format="compressed-tensors"), RunConfig()).layers[_Q].blocks[0]
    assert block.ranges is not None
    part = Path(dataset) / block.path
    data = bytearray(part.read_bytes())
    data[block.ranges.scales.offset + block.ranges.scales.stored_nbytes // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(CorruptWeights, match="q_proj"):
        exported(dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_of_an_export_has_a_record_of_its_own(tmp_path: Path) -> None:
    side_files = {"config.json": b'{"model_type": "llama"}', "export.json": b"{}"}
    quantization = QuantizationConfig("int8", mixed_precision_layers=_KEEP)
    dataset = made_dataset(tmp_path, _weights(), quantization, side_files=side_files)
    made = exported(dataset, tmp_path / "out")
    assert (tmp_path / "out/export.json").read_bytes() == made.record.to_bytes()
    assert exported(dataset, tmp_path / "out").already_finished


_FUSED_EXPERTS = {"experts.gate_up_proj": (2, 128, 64), "experts.down_proj": (2, 64, 64)}


@pytest.mark.parametrize(
    ("model_type", "own", "twice"),
    [
        ("qwen3_moe", "mlp.experts.1.up_proj.weight", "mlp.experts.1.up_proj.weight"),
        ("mixtral", "block_sparse_moe.gate.weight", "block_sparse_moe.gate.weight"),
    ],
)
def test_a_layer_with_the_name_of_an_expert_or_of_a_renamed_one_is_refused(
    model_type: str, own: str, twice: str, tmp_path: Path
) -> None:
    """Neither is dropped in silence."""
    shapes = {**{f"mlp.{name}": shape for name, shape in _FUSED_EXPERTS.items()}, "mlp.gate.weight": (64, 64)}
    tensors = {
        f"model.layers.0.{name}": torch.randn(shape) for name, shape in {**shapes, own: (64, 64)}.items()
    }
    dataset = _dataset(tmp_path, _INT4 | {"mixed_precision_layers": []}, tensors, {"model_type": model_type})
    for options in ({}, {"requantize": True}):
        with pytest.raises(InvalidConfig, match=rf"would have model\.layers\.0\.{re.escape(twice)} twice"):
            exported(dataset, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_two_tensors_of_one_name_are_refused_though_they_would_be_in_different_files(tmp_path: Path) -> None:
    weights = {"a.o_proj.weight": torch.randn(2048, 1024), "a.o_proj.weight_scale": torch.randn(2048, 32, 16)}
    keep = {"mixed_precision_layers": ["*_scale"]}
    dataset = _dataset(tmp_path, _INT4 | keep, weights)
    with pytest.raises(InvalidConfig, match=r"would have a\.o_proj\.weight_scale twice"):
        exported(dataset, tmp_path / "out", max_file_bytes="1MiB")
