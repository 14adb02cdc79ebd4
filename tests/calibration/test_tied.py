"""An embedding that is also the output head has statistics of both uses, and is quantized by what the head receives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader, calibrate
from arrowquant_dist.calibration.worker import AHEAD, SliceWorker
from arrowquant_dist.driver.run import plan_only
from tests.calibration.reference import inputs_of, mean_product, read
from tests.evaluation.models import TEXTS, save_tied_llama

RUN = RunConfig(engine="inline", workers=1)
TIED = "model.embed_tokens.weight"
INT4 = QuantizationConfig("int4", per_channel=False, group_size=16, method="gptq", hessians="later")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tied_llama(tmp_path_factory.mktemp("tied") / "source")


@pytest.fixture(scope="module")
def seen(source: Path) -> dict[str, np.ndarray]:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    return inputs_of(model, source, TEXTS)


@pytest.fixture(scope="module")
def sequential(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sequential") / "out"
    calibrate(source, out, [*TEXTS], quantize=INT4, run=RUN)
    return out


def assert_both_uses(out: Path, seen: dict[str, np.ndarray]) -> None:
    tensors, head = read(out), seen["lm_head.weight"]
    hessian = mean_product(head, head)
    np.testing.assert_allclose(tensors[f"{TIED}.hessian"], hessian, atol=3e-5 * np.abs(hessian).max())
    assert tensors[f"{TIED}.counts"].sum() == len(seen[TIED])
    own = {name for name in tensors if name.startswith(TIED) and not name.endswith(".digests")}
    assert own == {f"{TIED}.counts", f"{TIED}.hessian"}


def test_of_the_original_alone_and_ahead_of_a_sequential_one_it_has_what_the_head_is_given(
    source: Path, sequential: Path, seen: dict[str, np.ndarray], tmp_path: Path
) -> None:
    found = calibrate(source, tmp_path / "out", [*TEXTS], run=RUN)
    assert_both_uses(tmp_path / "out", seen)
    assert_both_uses(sequential, seen)
    [layer] = [layer for layer in found.layers if layer.name == TIED]
    assert layer.parts == ("counts", "hessian")
    assert not [*(sequential / "run").rglob("*.safetensors")]


def logits_error(source: Path, target: Path, head: np.ndarray) -> float:
    """Of the tied matrix as a head, on what it is given."""
    with WeightLoader(target) as loader:
        made = loader[TIED].double().numpy()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    errors = made - model.get_input_embeddings().weight.detach().double().numpy()
    return float(((errors @ head.T) ** 2).mean())


def test_gptq_quantizes_it_by_that_and_loses_less_of_the_logits_than_mse(
    source: Path, sequential: Path, seen: dict[str, np.ndarray], tmp_path: Path
) -> None:
    config = INT4.replace(hessians=str(sequential))
    plan = plan_only(str(source), str(tmp_path / "out"), config, RUN)
    assert {block.spec.method for block in plan.blocks if block.layer.name == TIED} == {"gptq"}
    ArrowQuantizer(config, RUN).quantize(source, tmp_path / "out")
    ArrowQuantizer(INT4.replace(method="mse", hessians=None), RUN).quantize(source, tmp_path / "mse")
    by_gptq, by_mse = (
        logits_error(source, tmp_path / name, seen["lm_head.weight"]) for name in ("out", "mse")
    )
    assert by_gptq < 0.8 * by_mse


class Stopped(Exception):
    pass


def test_one_that_is_stopped_while_it_looks_ahead_goes_on_to_the_same(
    source: Path, sequential: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, done, ahead = SliceWorker.run, 0, 0

    def stopping(self: SliceWorker, job: Any, *args: Any) -> Any:
        nonlocal done, ahead
        if done == 3:
            raise Stopped
        done += 1
        ahead += job.stage == AHEAD
        return own(self, job, *args)

    monkeypatch.setattr(SliceWorker, "run", stopping)
    with pytest.raises(Stopped):
        calibrate(source, tmp_path / "out", [*TEXTS], quantize=INT4, run=RUN)
    assert ahead == 3
    monkeypatch.setattr(SliceWorker, "run", own)
    calibrate(source, tmp_path / "out", [*TEXTS], quantize=INT4, run=RUN)
    files, others = (
        {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}
        for folder in (tmp_path / "out", sequential)
    )
    assert files == others


@pytest.mark.slow
def test_a_size_codes_it_on_that_target(source: Path, tmp_path: Path) -> None:
    config = QuantizationConfig(size="5.0bits", hessians=str(tmp_path / "statistics"))
    calibrate(source, tmp_path / "statistics", [*TEXTS], quantize=config, run=RUN)
    plan = plan_only(str(source), str(tmp_path / "out"), config, RUN)
    [spec] = {block.spec for block in plan.blocks if block.layer.name == TIED}
    assert spec.method == "gptq"
    assert spec.step > 0.0
