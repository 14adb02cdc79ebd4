"""Along two paths, H, C and D follow their formulas, with the original's inputs and those of the model as quantized up
to each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertModel

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader, calibrate
from tests.calibration.reference import hooked, read
from tests.evaluation.models import TEXTS, save_bert, save_llama

SOME = TEXTS[::4]
INT2 = QuantizationConfig("int2", per_channel=False, group_size=16)
LLAMA = ["q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj"]
BERT = ["attention.self.query attention.self.key attention.self.value", "attention.output.dense"]
BERT += ["intermediate.dense", "output.dense"]


def gptq(out: Path) -> QuantizationConfig:
    return INT2.replace(method="gptq", hessians=str(out))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A model, statistics by gptq at 2 bits, and the dataset that quantize makes with them."""
    folder = tmp_path_factory.mktemp("llama")
    return made(save_llama(folder / "source"), folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("bert")
    return made(save_bert(folder / "source"), folder)


def made(source: Path, folder: Path) -> tuple[Path, Path, Path]:
    config = gptq(folder / "out")
    calibrate(source, folder / "out", [*SOME], quantize=config)
    ArrowQuantizer(config, RunConfig(engine="inline")).quantize(source, folder / "target")
    return source, folder / "out", folder / "target"


def paths(
    model: torch.nn.Module, source: Path, target: Path, quantized: Sequence[str], wanted: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs of `wanted` in the original, and in a model whose layers `quantized` are the dataset's."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    found = []
    original = {name: value.clone() for name, value in model.state_dict().items()}
    loader = WeightLoader(target)
    for names in ([], quantized):
        model.load_state_dict(original)
        model.load_state_dict({name: loader.read(name).float() for name in names}, strict=False)
        with torch.no_grad(), hooked(model) as seen:
            for text in SOME:
                model(**tokenizer(text, return_tensors="pt"))
            found.append(
                {
                    name: torch.cat([v.reshape(-1, v.shape[-1]) for v in seen[name]]).double().numpy()
                    for name in wanted
                }
            )
    model.load_state_dict(original)
    return found[0], found[1]


def assert_mean(found: np.ndarray, one: np.ndarray, other: np.ndarray, scale: float, name: str) -> None:
    np.testing.assert_allclose(found, one.T @ other / len(other), atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize(("kind", "stages"), [("llama", LLAMA), ("bert", BERT)])
def test_h_and_c_are_of_the_layers_inputs_along_both_paths(
    request: pytest.FixtureRequest, kind: str, stages: list[str]
) -> None:
    source, out, target = request.getfixturevalue(kind)
    model_class = AutoModelForCausalLM if kind == "llama" else BertModel
    model = model_class.from_pretrained(source, dtype=torch.float32).eval()
    blocks = "model.layers" if kind == "llama" else "encoder.layer"
    tensors = read(out)
    before = [name.removesuffix(".counts") for name in tensors if name.endswith(".counts")]
    for block in range(2):
        for stage in stages:
            wanted = [name for name in model.state_dict() if is_of(name, f"{blocks}.{block}.", stage)]
            assert len(wanted) == len(stage.split())
            x, quantized = paths(model, source, target, before, wanted)
            for name in wanted:
                scale = float(np.abs(quantized[name]).max() ** 2)
                assert_mean(tensors[f"{name}.hessian"], quantized[name], quantized[name], scale, name)
                assert_mean(tensors[f"{name}.cross"], x[name], quantized[name], scale, name)
            before += wanted
    assert sum(name.endswith(".cross") for name in tensors) >= 2 * sum(len(s.split()) for s in stages)


def is_of(name: str, block: str, stage: str) -> bool:
    rest = name.removeprefix(block).removesuffix(".weight")
    return (
        name.startswith(block)
        and name.endswith(".weight")
        and any(rest == part or (rest.endswith(f".{part}") and "." not in part) for part in stage.split())
    )


def test_d_is_of_the_stream_that_a_layer_is_added_to(llama: tuple[Path, Path, Path]) -> None:
    """A Llama's streams by hand: what goes into a block's norms."""
    source, out, target = llama
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tensors, block = read(out), "model.layers.0."
    before = ["model.embed_tokens.weight"]
    for norm, stage in (("input_layernorm", LLAMA[:2]), ("post_attention_layernorm", LLAMA[2:])):
        before += [n for n in model.state_dict() if is_of(n, block, stage[0])]
        [name] = [n for n in model.state_dict() if is_of(n, block, stage[1])]
        streams: list[torch.Tensor] = []
        handle = model.get_submodule(block + norm).register_forward_pre_hook(
            lambda _, args: streams.append(args[0].reshape(-1, args[0].shape[-1]).clone())  # noqa: B023
        )
        _, quantized = paths(model, source, target, before, [name])
        handle.remove()
        r = torch.cat(streams).double().numpy().reshape(2, -1, 32)
        difference = r[0] - r[1]
        scale = float(np.abs(difference).max() * np.abs(quantized[name]).max())
        assert_mean(tensors[f"{name}.residual"], difference, quantized[name], scale, name)
        before.append(name)
    streams_of = {name.split(".")[-3] for name in tensors if name.endswith(".residual")}
    assert streams_of == {"o_proj", "down_proj"}


def test_quantize_makes_of_the_statistics_what_the_calibration_went_on_with(
    llama: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file

    from arrowquant_dist.calibration.place import CalibrationPlace

    source, _, target = llama
    monkeypatch.setattr(CalibrationPlace, "remove", lambda *_: None)
    calibrate(source, tmp_path / "out", [*SOME], quantize=gptq(tmp_path / "out"))
    loader, seen = WeightLoader(target), 0
    for path in sorted((tmp_path / "out" / "run" / "quantized").rglob("*.safetensors")):
        tensors = load_file(path)
        for name in (name for name in tensors if not name.endswith(".digests")):
            values, stored = tensors[name], loader.read(name)
            assert stored.contiguous().view(-1).view(torch.uint8).numpy().tobytes() == values.tobytes(), name
            seen += 1
    assert seen == 2 * 7 + 1 + 1  # of each block, the embedding, and the head
