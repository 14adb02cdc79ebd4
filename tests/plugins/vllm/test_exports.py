"""Exports as compressed-tensors in vLLM itself, and the same codes by the plugin, with no export at all.

vLLM's CPU has kernels for W8A8 alone; for packed codes the tests bring one (`reference_kernel.py`). Packed experts it
runs on GPUs alone ("No WNA16 MoE backend supports the deployment configuration"), so they are not among the cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from arrowquant_dist import ArrowQuantizer, QuantizationConfig
from arrowquant_dist.cli import main
from tests.plugins.vllm.models import decoded, llama_config, save, with_int8_activations
from tests.plugins.vllm.serving import PROMPTS, Vllm, continued

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FARTHEST = 0.06


@dataclass(frozen=True)
class Case:
    """settings: of the quantization. options: of the export. farthest: of log-probabilities."""

    settings: dict[str, Any]
    options: tuple[str, ...] = ()
    kept: tuple[str, ...] = ("embed", "lm_head")
    farthest: float = FARTHEST  # of log-probabilities

    def model(self, target: Path) -> PreTrainedModel:
        """Our decoded model, computing as the scheme says."""
        return with_int8_activations(decoded(target)) if self.options else decoded(target)


def grouped(bits: int, **other: Any) -> dict[str, Any]:
    return {"quant_type": f"int{bits}", "per_channel": False, "group_size": 64, "symmetric": True, **other}


ASYMMETRIC = {"symmetric": False, "integer_zero_points": True}
CASES = {
    # Where inputs differ by a rounding of bfloat16, some of them round to the next int8: 0.12 here, by equal tokens.
    "W8A8": Case({"quant_type": "int8"}, ("--activations", "int8"), farthest=0.2),
    "W8": Case({"quant_type": "int8"}),
    "W8 in groups": Case(grouped(8)),
    "W4": Case(grouped(4)),
    "W4 by row": Case({"quant_type": "int4", "symmetric": True}),
    "W4 with zero points": Case(grouped(4, **ASYMMETRIC)),
    "W2": Case(grouped(2)),
    "W4 and its head": Case(grouped(4), kept=("embed",)),
}
QUICK = ("W8A8", "W4 with zero points")  # by the plugin


def quantized(case: Case, folder: Path) -> Path:
    settings = {"scale_dtype": "bfloat16", "mixed_precision_layers": list(case.kept), **case.settings}
    source, target = save(llama_config(), folder / "source"), folder / "target"
    ArrowQuantizer(QuantizationConfig.from_dict(settings)).quantize(source, target)
    return target


@pytest.mark.parametrize("name", CASES)
def test_an_export_answers_as_our_decoded_model(vllm: Vllm, name: str, tmp_path: Path) -> None:
    case = CASES[name]
    target, out = quantized(case, tmp_path), tmp_path / "out"
    arguments = ["export", str(target), str(out), "--format", "compressed-tensors", *case.options]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code
    prompts, ours = continued(case.model(target))
    answer = vllm.answer(out, prompts)
    assert answer.same_as(ours) == PROMPTS
    assert answer.farthest_from(ours) <= case.farthest


@pytest.mark.parametrize("name", QUICK)
def test_codes_by_the_plugin_answer_as_our_decoded_model(vllm: Vllm, name: str, tmp_path: Path) -> None:
    case = CASES[name]
    target, folder = quantized(case, tmp_path), tmp_path / "folder"
    with pytest.raises(SystemExit) as ended:
        main(["vllm", str(target), str(folder), *case.options])
    assert not ended.value.code
    prompts, ours = continued(case.model(target))
    answer = vllm.answer(folder, prompts, load_format="arrowquant")
    assert answer.same_as(ours) == PROMPTS
    assert answer.farthest_from(ours) <= case.farthest
    assert not [path for path in folder.iterdir() if path.suffix in {".safetensors", ".parquet"}]
