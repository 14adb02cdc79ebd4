"""quantize --keep-codes: a source's own codes, scales and zero points become rows of V2."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, WeightLoader
from arrowquant_dist.config import LayerOverride, RunConfig
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import InvalidConfig, UnquantizableWeights
from arrowquant_dist.verify import verify
from tests.checkpoint.coded_models import MAKERS, SHAPE, SYMMETRIC, Made
from tests.checkpoint.quantized_models import Tensors, values_of
from tests.checkpoint.word_models import Words
from tests.datasets import decoded, rows_of, weights_of
from tests.held_worker import hold_at
from tests.integration.program import call, commits, end, is_published, run, start, wait_for

KEEP = QuantizationConfig(keep_codes=True)
RUN = RunConfig(engine="inline", block_bytes=64 << 10)


REST = {
    "norm.weight": torch.rand(SHAPE[1]),
    "lm_head.weight": torch.randn(40, SHAPE[1], generator=torch.Generator().manual_seed(3)),
    "up.bias": torch.rand(SHAPE[0]).half(),
}


def save(folder: Path, make: Callable[[str], Made], *names: str) -> Path:
    folder.mkdir(parents=True)
    stored: Tensors = dict(REST)
    for name in names or ("up", "gate"):
        tensors, quantization = make(name)
        stored |= tensors
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors")
    config = {"torch_dtype": "float32", "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", MAKERS)
def test_rows_decode_bit_for_bit_to_what_the_importer_decodes(tmp_path: Path, name: str) -> None:
    """In float32. Layers without codes stay byte for byte, vectors or not, and the config says nothing of codes."""
    from arrowquant_dist.checkpoint.open import open_checkpoint

    source, target = save(tmp_path / "source", MAKERS[name]), tmp_path / "target"
    quantize(str(source), str(target), KEEP, RUN)
    expected = values_of(open_checkpoint(str(source)))
    assert expected["up.weight"].dtype == torch.float32
    with WeightLoader(str(target)) as loader:
        found = dict(loader)
    assert found.keys() == expected.keys() == {"up.weight", "gate.weight", *REST}
    for layer, tensor in expected.items():
        assert found[layer].dtype == tensor.dtype
        assert found[layer].numpy().tobytes() == tensor.numpy().tobytes(), layer
    rows = rows_of(target)
    coded = [row for (layer, _), row in rows.items() if layer in ("up.weight", "gate.weight")]
    assert all(row["quant_type"].startswith("int") for row in coded)
    assert {row["zero_points"] == b"" for row in coded} == {name in SYMMETRIC}
    for row in coded:  # by the published formula, in numpy alone
        part = expected[row["layer_name"]][row["row_start"] :][: row["shape"][0]].double().numpy()
        assert np.allclose(decoded(row), part, rtol=1e-6, atol=0)
    assert rows[("lm_head.weight", 0)]["quant_type"] == "none"
    assert rows[("lm_head.weight", 0)]["data"] == REST["lm_head.weight"].numpy().tobytes()
    assert json.loads((target / "config.json").read_bytes()) == {"torch_dtype": "float32"}
    assert verify(str(target)).is_sound


@pytest.mark.parametrize("name", MAKERS)
def test_blocks_and_shards_change_nothing_but_the_files(tmp_path: Path, name: str) -> None:
    source = save(tmp_path / "source", MAKERS[name])
    whole = RunConfig(engine="inline", compression="none")
    for target, settings in (("cut", RUN), ("whole", whole)):
        quantize(str(source), str(tmp_path / target), KEEP, settings)
    cut, one = weights_of(tmp_path / "cut"), weights_of(tmp_path / "whole")
    assert len(cut) > len(one) == 5
    for layer, first in one:
        blocks = [blobs for (name_, _), blobs in sorted(cut.items()) if name_ == layer]
        data, scales, zero_points = (b"".join(parts) for parts in zip(*blocks, strict=True))
        if name == "tensor" and layer in ("up.weight", "gate.weight"):
            scales = scales[:4]  # one of all, in each block
        assert (data, scales, zero_points) == one[layer, first]


@pytest.mark.parametrize("name", ["w4", "w4 asymmetric", "w8", "w2", "w8a8"])
def test_the_source_s_tensors_follow_from_the_rows(tmp_path: Path, name: str) -> None:
    """compressed-tensors': words, float16 scales and packed zero points, byte for byte."""
    source, target = save(tmp_path / "source", MAKERS[name]), tmp_path / "target"
    quantize(str(source), str(target), KEEP, RunConfig(engine="inline"))
    stored, rows = load_file(source / "model.safetensors"), rows_of(target)
    for layer in ("up", "gate"):
        row = rows[f"{layer}.weight", 0]
        data = np.frombuffer(row["data"], np.uint8) ^ np.uint8(128 if name == "w8" else 0)
        codes = stored[f"{layer}.weight" if name == "w8a8" else f"{layer}.weight_packed"]
        assert data.tobytes() == codes.numpy().tobytes()
        scales = np.frombuffer(row["scales"], "<f4").astype(np.float16)
        assert scales.tobytes() == stored[f"{layer}.weight_scale"].numpy().tobytes()
        if row["zero_points"]:
            zeros = np.frombuffer(row["zero_points"], "<f4").reshape(SHAPE[0], -1).astype(int) + 8
            packed = np.add.reduce([zeros[i::8] << (4 * i) for i in range(8)])
            assert packed.astype("<u4").tobytes() == stored[f"{layer}.weight_zero_point"].numpy().tobytes()


@pytest.mark.parametrize(
    "name", ["gptq", *(pytest.param(name, marks=pytest.mark.slow) for name in ("awq", "w4"))]
)
def test_a_killed_run_ends_by_the_same_command_in_the_same_dataset(tmp_path: Path, name: str) -> None:
    names = ("up", "gate") if name == "w4" else tuple(f"layers.{'x' * i}.up" for i in range(6))
    source, quiet, target = (
        save(tmp_path / "source", MAKERS[name], *names),
        tmp_path / "quiet",
        tmp_path / "t",
    )
    config = tmp_path / "config.yaml"
    config.write_text("keep_codes: true\nrun: {block_bytes: 64KiB, shard_bytes: 64KiB, workers: 1}\n")
    command = ("quantize", source, target, "--config", config)
    assert call("quantize", source, quiet, "--config", config).returncode == 0
    held = """
from arrowquant_dist.engine import inline
from tests.held_worker import HeldWorker
inline.ShardWorker = HeldWorker
"""
    hold_at(str(target), 3)
    process = start(*command, before=held)
    wait_for(lambda: commits(target) >= 3, process)
    process.send_signal(signal.SIGKILL)
    end(process)
    assert not is_published(target)
    again = call(*command, "--json")
    assert again.returncode == 0, again.stderr
    assert len(json.loads(again.stdout)["report"]["run"]["resumed_shards"]) >= 3
    assert weights_of(target) == weights_of(quiet)
    assert "finished already" in call(*command).stdout
    assert "keep_codes" in call("quantize", source, target, "--quant", "int8").stderr


@pytest.mark.slow
def test_ray_gives_what_threads_give(tmp_path: Path) -> None:
    source = save(tmp_path / "source", MAKERS["gptq"])
    quantize(str(source), str(tmp_path / "threads"), KEEP, RUN)
    done = run("quantize", source, tmp_path / "ray", "--keep-codes", "--engine", "ray", "--workers", 1)
    assert done.returncode == 0, done.stderr
    threads = WeightLoader(str(tmp_path / "threads"))
    for layer, tensor in WeightLoader(str(tmp_path / "ray")):
        assert torch.equal(tensor, threads[layer])


def test_a_damaged_part_is_repaired(tmp_path: Path) -> None:
    source, target = save(tmp_path / "source", MAKERS["awq"]), tmp_path / "target"
    quantize(str(source), str(target), KEEP, RUN)
    before = weights_of(target)
    part = next((target / "weights").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-100] + bytes(100))
    outcome = quantize(str(source), str(target), KEEP, RUN.replace(repair=True))
    assert outcome.damaged
    assert weights_of(target) == before


def test_a_dataset_keeps_its_rows_in_other_parts(tmp_path: Path) -> None:
    """And back: the same rows, those that are kept in 16 bits too."""
    tensors = {
        "a.weight": torch.randn(300, 256),
        "b.weight": torch.randn(300, 256),
        "layers.experts": torch.randn(4, 64, 96),
        "half.weight": torch.randn(64, 64).half().float(),
        "norm.weight": torch.ones(64),
    }
    half = torch.randn(64, 64).round() / 8
    save_file({**tensors, "half.weight": half}, tmp_path / "model.safetensors")
    config = QuantizationConfig(
        "int4",
        per_channel=False,
        group_size=64,
        symmetric=False,
        mixed_precision_layers=["half"],
        overrides=[LayerOverride("b.weight", "int3", group_size=0, symmetric=True)],
    )
    quantize(str(tmp_path / "model.safetensors"), str(tmp_path / "one"), config, RUN)
    other = RunConfig(engine="inline", block_bytes=100 << 10, compression="none")
    quantize(str(tmp_path / "one"), str(tmp_path / "two"), KEEP, other)
    quantize(str(tmp_path / "two"), str(tmp_path / "three"), KEEP, RUN)
    assert weights_of(tmp_path / "one") == weights_of(tmp_path / "three") != weights_of(tmp_path / "two")
    assert rows_of(tmp_path / "two")["half.weight", 0]["quant_type"] == "fp16"
    one, two = WeightLoader(str(tmp_path / "one")), WeightLoader(str(tmp_path / "two"))
    for name in tensors:
        assert torch.equal(one[name], two[name])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A layer whose groups follow the order of activations beside one that can be kept."""
    tensors, config = MAKERS["gptq"]("up")
    turned = Words.random(SHAPE, 4, 64, by_activation=True).gptq("gate")
    folder = tmp_path / "mixed"
    folder.mkdir()
    save_file({**tensors, **turned, **REST}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"dtype": "float16", "quantization_config": config}))
    return folder


def test_codes_that_can_not_be_kept_are_refused_by_layer_before_anything_is_written(
    mixed: Path, tmp_path: Path
) -> None:
    done = call("quantize", mixed, tmp_path / "target", "--keep-codes")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for word in ("keep_codes", "gate.weight", "order of activations", "overrides", "quant_type"):
        assert word in done.stderr
    assert "up.weight" not in done.stderr
    assert not (tmp_path / "target").exists()


def test_an_override_says_how_these_are_stored(mixed: Path, tmp_path: Path) -> None:
    config = QuantizationConfig(keep_codes=True, overrides=[LayerOverride("gate.weight", "int8")])
    report = ArrowQuantizer(config, RUN).quantize(str(mixed), str(tmp_path / "target"))
    rows = rows_of(tmp_path / "target")
    assert {row["quant_type"] for (name, _), row in rows.items() if name == "gate.weight"} == {"int8"}
    assert {row["quant_type"] for (name, _), row in rows.items() if name == "up.weight"} == {"int4"}
    assert any("decoded from GPTQ's" in note and "gate.weight" in note for note in report.notes)
    assert report.accuracy is not None
    assert report.accuracy.layers == 1
    assert report.accuracy.unmeasured_layers == 0


def test_a_type_for_the_rest_is_only_what_is_said(tmp_path: Path) -> None:
    source, config = save(tmp_path / "source", MAKERS["gptq"]), tmp_path / "int8.yaml"
    config.write_text("quant_type: int8\n")
    ways: dict[str, tuple[object, ...]] = {
        "none": (),
        "int4": ("--quant", "int4"),
        "int8": ("--config", config),
    }
    for quant_type, options in ways.items():
        target = tmp_path / quant_type
        done = call("quantize", source, target, "--keep-codes", "--engine", "inline", *options)
        assert done.returncode == 0, done.stderr
        rows = rows_of(target)
        assert rows["lm_head.weight", 0]["quant_type"] == quant_type
        assert rows["up.weight", 0]["quant_type"] == "int4"
        assert rows["up.weight", 0]["group_size"] == 64


def test_the_dry_run_says_which_layers_keep_their_codes_and_why_the_others_do_not(
    mixed: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("overrides:\n  - {layers: gate.weight, quant_type: fp16}\n")
    command = ("quantize", mixed, tmp_path / "target", "--keep-codes", "--config", config, "--dry-run")
    summary = json.loads(call(*command, "--json").stdout)
    layers = {layer["layer_name"]: layer for layer in summary["layers"]}
    assert {name: layer["encoding"] for name, layer in layers.items() if layer["encoding"]} == {
        "up.weight": "GPTQ's 4-bit codes and scales"
    }
    assert {name: layer["rule"] for name, layer in layers.items()} == {
        "up.weight": "keep_codes",
        "gate.weight": "override: gate.weight",
        "lm_head.weight": "holds no codes (keep_codes)",
        "norm.weight": "1-D",
        "up.bias": "1-D",
    }
    assert summary["types"]["int4"]["expected_nbytes"] == SHAPE[0] * (SHAPE[1] // 2 + 2 * 4 * 4)
    stored = load_file(mixed / "model.safetensors")
    own = sum(
        tensor.nbytes for name, tensor in stored.items() if name.startswith("up.") and "bias" not in name
    )
    assert summary["types"]["int4"]["source_nbytes"] == own
    text = call(*command).stdout
    assert "Codes of the source, kept as they are" in text
    assert not (tmp_path / "target").exists()


def test_the_report_has_no_error_of_codes_that_are_kept_and_counts_the_source_s_bytes(
    tmp_path: Path,
) -> None:
    source = save(tmp_path / "source", MAKERS["w4"])
    report = ArrowQuantizer(KEEP, RUN).quantize(str(source), str(tmp_path / "target"))
    assert report.accuracy is None
    assert not report.worst_layers
    (note,) = (note for note in report.notes if "codes, scales and zero points of the source" in note)
    assert note.startswith("2 layers have")
    assert any(note == "kept as they are, packed4 codes and scales: 2 layers" for note in report.notes)
    assert not any("decoded from" in note for note in report.notes)
    stored = load_file(source / "model.safetensors")
    shapes = sum(tensor.nbytes for name, tensor in stored.items() if name.endswith("_shape"))
    assert report.totals.source_nbytes == sum(t.nbytes for t in stored.values()) - shapes
    rest = sum(tensor.numel() for tensor in REST.values())
    assert report.totals.fp16_nbytes == 2 * (2 * SHAPE[0] * SHAPE[1] + rest)
    shown = call("report", tmp_path / "target").stdout
    assert "codes are the source's own" in shown
    assert "nothing is quantized" not in shown


@pytest.mark.parametrize("name", ["plain", "float8"])
def test_a_source_without_such_codes_is_refused_for_what_it_is(tmp_path: Path, name: str) -> None:
    codes = {"float8": torch.ones(8, 128).to(torch.float8_e4m3fn), "plain": torch.ones(8, 128)}[name]
    tensors = {"a.weight": codes, "a.weight_scale_inv": torch.ones(1, 1)}
    if name == "plain":
        del tensors["a.weight_scale_inv"]
    (tmp_path / "source").mkdir()
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    quantization = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "source" / "config.json").write_text(
        json.dumps({"quantization_config": quantization} if name == "float8" else {})
    )
    said = {
        "plain": "no layer of the source has codes",
        "float8": r"a\.weight: .* a form that V2 does not have",
    }
    with pytest.raises(InvalidConfig, match=f"keep_codes: .*{said[name]}"):
        quantize(str(tmp_path / "source"), str(tmp_path / "target"), KEEP, RUN)
    assert not (tmp_path / "target").exists()


def test_scales_that_are_no_numbers_end_the_run_and_publish_nothing(tmp_path: Path) -> None:
    made = Words.random(SHAPE, 4, 64)
    made.scales[2, 7] = np.nan
    config = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    source = save(tmp_path / "source", lambda name: (made.gptq(name), config), "up")
    with pytest.raises(UnquantizableWeights, match="has a scale of nan") as error:
        quantize(str(source), str(tmp_path / "target"), KEEP, RUN)
    assert error.value.layer == "up.weight"
    assert not is_published(tmp_path / "target")
