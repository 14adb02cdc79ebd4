"""vLLM itself, with the plugin: it takes minutes and an environment of 4 GB, which the first run makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from arrowquant_dist import ArrowQuantizer, QuantizationConfig
from tests.plugins.vllm.models import decoded
from tests.plugins.vllm.serving import PROMPTS, Vllm, continued

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

INT8 = QuantizationConfig(mixed_precision_layers=["embed", "lm_head"])
FARTHEST = 0.06


@pytest.fixture(scope="session")
def int8(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("int8") / "target"
    ArrowQuantizer(INT8).quantize(llama, target)
    return target


def test_a_dataset_on_disk_answers_as_our_decoded_model(vllm: Vllm, int8: Path) -> None:
    prompts, ours = continued(decoded(int8))
    answer = vllm.answer(int8, prompts, load_format="arrowquant")
    assert answer.same_as(ours) == PROMPTS
    assert answer.farthest_from(ours) <= FARTHEST
