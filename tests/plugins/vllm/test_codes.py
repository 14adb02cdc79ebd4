"""Codes are handed over as an export has them, and part of a layer is read from only the rows that it is in."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.cli import main
from arrowquant_dist.errors import InvalidConfig, ModelMismatch, NotFound
from arrowquant_dist.plugins.vllm.codes import coded_weights
from arrowquant_dist.plugins.vllm.lazy import LazyTensor
from arrowquant_dist.plugins.vllm.settings import LoadSettings

PREFIX = "model.layers"
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "W8A8": ({"quant_type": "int8"}, ("--activations", "int8")),
    "W8": ({"quant_type": "int8"}, ()),
    "W4": ({"quant_type": "int4", "per_channel": False, "group_size": 32, "symmetric": True}, ()),
    "W4 with zero points": (
        {"quant_type": "int4", "per_channel": False, "group_size": 32, "symmetric": False}
        | {"integer_zero_points": True},
        (),
    ),
    "W2": ({"quant_type": "int2", "per_channel": False, "group_size": 32, "symmetric": True}, ()),
}


def save_model(folder: Path) -> Path:
    """Llama's names, fused experts as Qwen2-MoE's among them, in bfloat16."""
    random = np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (96, 64), "lm_head.weight": (96, 64)}
    for i in range(3):
        block = f"{PREFIX}.{i}"
        shapes[f"{block}.self_attn.q_proj.weight"] = (64, 64)
        shapes[f"{block}.self_attn.k_proj.weight"] = (32, 64)
        shapes[f"{block}.self_attn.v_proj.weight"] = (32, 64)
        shapes[f"{block}.input_layernorm.weight"] = (64,)
        shapes[f"{block}.mlp.experts.gate_up_proj"] = (2, 192, 64)
        shapes[f"{block}.mlp.experts.down_proj"] = (2, 64, 96)
    values = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    folder.mkdir()
    save_file(
        {name: torch.from_numpy(value).bfloat16() for name, value in values.items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_moe", "dtype": "bfloat16"}))
    return folder


def quantized(folder: Path, run: RunConfig | None = None, **settings: Any) -> Path:
    config = {"mixed_precision_layers": ["embed", "lm_head"], "scale_dtype": "bfloat16", **settings}
    target = folder / "target"
    ArrowQuantizer(QuantizationConfig.from_dict(config), run).quantize(save_model(folder / "source"), target)
    return target


def program(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("memory", [16 << 20, 3000], ids=["at once", "in steps"])
def test_every_tensor_and_any_part_of_it_is_what_an_export_writes(
    case: str, memory: int, tmp_path: Path
) -> None:
    settings, options = CASES[case]
    target, folder = quantized(tmp_path, **settings), tmp_path / "folder"
    assert program("export", target, tmp_path / "out", "--format", "compressed-tensors", *options) == 0
    assert program("vllm", target, folder, *options) == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    given = LoadSettings.of({}, str(folder))
    seen = []
    with coded_weights(given, given.open(16 << 20), config_of(folder), memory) as pairs:
        for name, lazy in pairs:
            seen.append(name)
            wanted = written[name]
            if case == "W8A8" and name.endswith(
                "weight_scale"
            ):  # which vLLM has in float32, whatever it is given
                wanted = wanted.float()
            assert isinstance(lazy, LazyTensor)
            assert (lazy.shape, lazy.dtype) == (wanted.shape, wanted.dtype)
            for dim, size in enumerate(wanted.shape):
                for ranks in (1, 2):
                    part = size // ranks
                    for start in range(0, part * ranks, part or 1):
                        place = torch.empty_like(wanted.narrow(dim, start, part))
                        place.copy_(lazy.narrow(dim, start, part))
                        assert place.equal(wanted.narrow(dim, start, part)), (name, dim, start)
    assert sorted(seen) == sorted(written)


def test_scales_and_zero_points_come_along_with_the_codes(tmp_path: Path) -> None:
    target, folder = quantized(tmp_path, **CASES["W4 with zero points"][0]), tmp_path / "folder"
    assert program("vllm", target, folder) == 0
    given = LoadSettings.of({}, str(folder))
    opened = given.open(16 << 20)
    with coded_weights(given, opened, config_of(folder), 1 << 20) as pairs:
        halves = {name: lazy.narrow(0, 0, len(lazy) // 2) for name, lazy in pairs}
        read = []
        for suffix in ("weight_packed", "weight_scale", "weight_zero_point"):
            half = halves[f"{PREFIX}.1.self_attn.q_proj.{suffix}"]
            torch.empty(half.shape, dtype=half.dtype).copy_(half)
            read.append(opened.dataset.nbytes_read)
    assert read[0] > 0
    assert read == [read[0]] * 3


def test_half_of_the_rows_is_half_of_the_bytes(tmp_path: Path) -> None:
    name, source = f"{PREFIX}.0.mlp.up_proj.weight", tmp_path / "source"
    source.mkdir()
    save_file({name: torch.randn(4096, 1024).bfloat16()}, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16"}))
    config = QuantizationConfig("int8", scale_dtype="bfloat16")
    ArrowQuantizer(config, RunConfig(compression="none")).quantize(source, tmp_path / "target")
    assert program("vllm", tmp_path / "target", tmp_path / "folder") == 0
    given = LoadSettings.of({}, str(tmp_path / "folder"))
    opened = given.open(16 << 20)
    with coded_weights(given, opened, config_of(tmp_path / "folder"), 4 << 20) as pairs:
        half = next(lazy for packed, lazy in pairs if packed.endswith("weight_packed")).narrow(0, 2048, 2048)
        torch.empty(half.shape, dtype=half.dtype).copy_(half)
    assert 2 << 20 <= opened.dataset.nbytes_read <= (2 << 20) + (64 << 10)  # and the scales


def test_a_model_with_other_settings_than_the_dataset_s_is_refused(tmp_path: Path) -> None:
    target, folder = quantized(tmp_path, **CASES["W4"][0]), tmp_path / "folder"
    assert program("vllm", target, folder) == 0
    config = config_of(folder)
    config["config_groups"]["group_0"]["weights"]["group_size"] = 64
    given = LoadSettings.of({}, str(folder))
    with (
        pytest.raises(ModelMismatch, match="arrowquant vllm TARGET FOLDER"),
        coded_weights(given, given.open(16 << 20), config, 1 << 20),
    ):
        pass


def test_scales_that_vllm_would_round_are_refused_when_they_are_read(tmp_path: Path) -> None:
    exact, rounded = tmp_path / "exact", tmp_path / "rounded"
    exact.mkdir()
    rounded.mkdir()
    right = quantized(exact, **CASES["W4"][0])
    wrong = quantized(rounded, **{**CASES["W4"][0], "scale_dtype": "float32", "method": "rtn"})
    assert program("vllm", right, tmp_path / "folder") == 0
    given = LoadSettings.of({"target": str(wrong)}, str(tmp_path / "folder"))
    with coded_weights(given, given.open(16 << 20), config_of(tmp_path / "folder"), 1 << 20) as pairs:
        lazy = next(lazy for name, lazy in pairs if name.endswith("q_proj.weight_packed"))
        with pytest.raises(InvalidConfig, match="scales are not exact in BF16") as caught:
            torch.empty(lazy.shape, dtype=lazy.dtype).copy_(lazy)
    assert caught.value.layer == f"{PREFIX}.0.self_attn.q_proj.weight"


def test_a_folder_has_the_small_files_and_where_the_weights_are(tmp_path: Path) -> None:
    target, folder = quantized(tmp_path, **CASES["W8"][0]), tmp_path / "folder"
    assert program("vllm", target, folder) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["arrowquant.json", "config.json"]
    assert json.loads((folder / "arrowquant.json").read_text()) == {"target": str(target)}
    assert program("vllm", target, folder, "--decoded") == 0  # it may be made anew
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_a_folder_with_other_content_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, folder = quantized(tmp_path, **CASES["W8"][0]), tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert program("vllm", target, folder) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (folder / "config.json").read_text() == "{}"


def test_codes_that_vllm_cannot_have_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {**CASES["W4"][0], "symmetric": False}
    target, folder = quantized(tmp_path, **settings), tmp_path / "folder"
    assert program("vllm", target, folder) == 2
    message = capsys.readouterr().err
    assert "zero points" in message
    assert "or use arrowquant vllm TARGET FOLDER --decoded" in message
    assert "--requantize" not in message  # an option of exports
    assert not folder.exists()
    assert program("vllm", target, folder, "--decoded") == 0


def test_a_folder_s_name_is_quoted_in_the_command_that_serves_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, folder = quantized(tmp_path, **CASES["W8"][0]), tmp_path / "a folder"
    assert program("vllm", target, folder) == 0
    command = capsys.readouterr().out.strip().rpartition(": ")[2]
    assert shlex.split(command) == ["vllm", "serve", str(folder), "--load-format", "arrowquant"]


def test_a_url_is_no_folder_for_vllm_and_nothing_local_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = quantized(tmp_path, **CASES["W8"][0])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert program("vllm", target, "s3://bucket/folder") == 2
    assert "s3://bucket/folder: vLLM reads these small files from a local" in capsys.readouterr().err
    assert not any((tmp_path / "here").iterdir())
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    assert program("vllm", target, "~/folder") == 0
    assert (tmp_path / "here/folder/config.json").exists()


def test_a_folder_for_vllm_in_the_place_of_a_dataset_is_called_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, folder = quantized(tmp_path, **CASES["W8"][0]), tmp_path / "folder"
    assert program("vllm", target, folder) == 0
    said = r"folder for vLLM, without weights; use the dataset that its arrowquant\.json names"
    with pytest.raises(NotFound, match=said):
        WeightLoader(folder)
    for command in (
        ("verify", folder),
        ("inspect", folder),
        ("export", folder, tmp_path / "out", "--format", "v1"),
    ):
        assert program(*command) == 2
        assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("memory", [16 << 20, 3000], ids=["at once", "in steps"])
def test_experts_that_an_export_turns_are_turned_whatever_part_is_taken(memory: int, tmp_path: Path) -> None:
    """Llama 4's, which are [experts, in, out]."""
    generator, block = torch.Generator().manual_seed(5), "model.layers.0.feed_forward"
    tensors = {
        f"{block}.experts.gate_up_proj": torch.randn(2, 24, 64, generator=generator),
        f"{block}.experts.down_proj": torch.randn(2, 32, 24, generator=generator),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(24, 24, generator=generator),
    }
    (tmp_path / "source").mkdir()
    save_file(tensors, tmp_path / "source/model.safetensors")
    (tmp_path / "source/config.json").write_text('{"model_type": "llama4_text", "dtype": "float32"}')
    target, folder = str(tmp_path / "target"), tmp_path / "folder"
    config = QuantizationConfig("int8", mixed_precision_layers=["experts"], scale_dtype="bfloat16")
    ArrowQuantizer(config).quantize(str(tmp_path / "source"), target)
    assert program("vllm", target, folder) == 0
    given = LoadSettings.of({}, str(folder))
    with WeightLoader(target) as loader:
        gate_up, down = loader[f"{block}.experts.gate_up_proj"], loader[f"{block}.experts.down_proj"]
    with coded_weights(given, given.open(16 << 20), config_of(folder), memory) as pairs:
        found = dict(pairs)
        for expert in range(2):
            gate, up = gate_up[expert].T.chunk(2)
            own = {"gate_proj": gate, "up_proj": up, "down_proj": down[expert].T}
            for module, wanted in own.items():
                lazy = found[f"{block}.experts.{expert}.{module}.weight"]
                assert lazy.shape == wanted.shape
                for dim, size in enumerate(wanted.shape):
                    half = size // 2
                    for start in (0, half):
                        place = torch.empty(wanted.narrow(dim, start, half).shape)
                        place.copy_(lazy.narrow(dim, start, half))
                        assert place.equal(wanted.narrow(dim, start, half)), (module, dim, start)
