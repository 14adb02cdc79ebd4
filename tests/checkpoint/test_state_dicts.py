"""Which dict of a PyTorch file is the model."""

from __future__ import annotations

import io
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.checkpoint import torch_private
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.driver.run import quantize
from arrowquant_dist.errors import InvalidCheckpoint
from tests.checkpoint.checkpoint_files import read_all

MODEL = {"module.weight": torch.full((2, 3), 5.0), "module.bias": torch.arange(2.0)}
OPTIMIZER = {
    "state": {0: {"exp_avg": torch.ones(2, 3), "step": torch.tensor(7.0)}},
    "param_groups": [{"lr": 0.1}],
}
OTHER = {"weight": torch.full((2, 3), 9.0)}

READ: dict[str, tuple[dict[str, Any], str]] = {
    "timm": (
        {"state_dict": MODEL, "best_acc1": torch.tensor(77.5), "epoch": 3, "optimizer": OPTIMIZER},
        "'best_acc1', 'optimizer'",
    ),
    "figures of several values": (
        {"model": MODEL, "losses": torch.ones(9), "best": torch.tensor([[0.5]])},
        "'losses', 'best'",
    ),
    "a matrix of figures": ({"state_dict": MODEL, "confusion": torch.ones(9, 9)}, "'confusion'"),
    "lightning": (
        {
            "state_dict": OrderedDict(MODEL),
            "optimizer_states": [OPTIMIZER],
            "lr_schedulers": [{"base": torch.ones(2)}],
            "callbacks": {"ModelCheckpoint{'monitor': 'x'}": {"best_model_score": torch.tensor(0.1)}},
            "loops": {"fit_loop": {"batches": torch.tensor(3)}},
            "hyper_parameters": {"weights": torch.ones(3)},
            "MixedPrecisionPlugin": {"scale": torch.tensor(1.0)},
            "pytorch-lightning_version": "2.4",
            "global_step": 10,
        },
        "'optimizer_states'",
    ),
    "mmengine": (
        {"meta": {"seed": torch.tensor(1)}, "state_dict": MODEL, "message_hub": {"loss": torch.ones(2)}},
        "'meta', 'message_hub'",
    ),
    "deepspeed": (
        {
            "module": MODEL,
            "buffer_names": [],
            "optimizer": None,
            "param_shapes": [OrderedDict((name, tensor.shape) for name, tensor in MODEL.items())],
            "frozen_param_fragments": {"x": torch.ones(1)},
            "lr_scheduler": {"base": torch.ones(1)},
            "global_steps": 10,
            "ds_version": "0.15",
        },
        "'frozen_param_fragments', 'lr_scheduler'",
    ),
    "fairseq": (
        {"model": MODEL, "extra_state": {"metrics": torch.ones(1)}, "last_optimizer_state": OPTIMIZER},
        "'extra_state', 'last_optimizer_state'",
    ),
    "averaged alone": ({"ema": MODEL, "optimizer": OPTIMIZER}, "'optimizer'"),
    "any key": ({"generator": MODEL, "opt": OPTIMIZER, "iteration": 5}, "'opt'"),
}


@pytest.fixture(params=["private", "public"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "public":
        monkeypatch.setattr(torch_private, "_MODULE", "torch._subclasses.moved")


def saved(folder: Path, value: Any) -> str:
    torch.save(value, folder / "model.pt")
    return str(folder / "model.pt")


def assert_model(uri: str) -> None:
    checkpoint = open_checkpoint(uri)
    assert read_all(checkpoint) == {name: tensor.numpy().tobytes() for name, tensor in MODEL.items()}


@pytest.mark.parametrize(("value", "left_out"), READ.values(), ids=READ.keys())
def test_the_model_is_found_and_what_is_left_out_is_told(
    tmp_path: Path, value: dict[str, Any], left_out: str
) -> None:
    uri = saved(tmp_path, value)
    assert_model(uri)
    (note,) = open_checkpoint(uri).notes
    assert re.search(f"holds more than the model; left out: .*{re.escape(left_out)}", note)


REFUSED: dict[str, tuple[Any, str]] = {
    "both": ({"model": MODEL, "ema": OTHER}, "several dicts .*'model', 'ema'.*save the one to use"),
    "both of timm": ({"state_dict": MODEL, "state_dict_ema": OTHER}, "several dicts .*'state_dict_ema'"),
    "both of mmengine": ({"state_dict": MODEL, "ema_state_dict": OTHER}, "several dicts"),
    "both of basicsr": ({"params": MODEL, "params_ema": OTHER}, "several dicts"),
    "two known": ({"state_dict": MODEL, "model": OTHER}, "several dicts"),
    "the best": ({"model": MODEL, "best_model": OTHER}, "several dicts"),
    "two models": ({"student": MODEL, "teacher": OTHER, "dino_loss": {"center": torch.ones(2)}}, "several .*'student'"),
    "a trainer's state": ({"optimizer": OPTIMIZER}, "only a trainer's state"),
    "weights beside a part": ({"model": MODEL, "head.weight": torch.ones(3, 3)}, "in 'model' and beside it"),
    "nested deeper": ({"model": {"language_model": {"embedding": MODEL}}}, "'language_model' is a dict of tensors"),
    "a tensor alone": (torch.ones(3, 3), "it holds a tensor, not a dict of tensors"),
    "placeholders": (
        {"module": {"weight": torch.ones(0)}, "param_shapes": [{"weight": torch.Size([4, 4])}]},
        "ZeRO stage 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("value", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_be_a_guess_is_refused(tmp_path: Path, value: Any, reason: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=reason):
        open_checkpoint(saved(tmp_path, value))


def saved_from(folder: Path, device: str) -> str:
    """As `torch.save` writes it where the tensors are on `device`."""
    buffer = io.BytesIO()
    torch.save(MODEL, buffer)
    path = folder / "model.pt"
    tag = device.encode()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                assert b"X\3\0\0\0cpu" in data
                data = data.replace(b"X\3\0\0\0cpu", b"X" + len(tag).to_bytes(4, "little") + tag)
            new.writestr(name, data)
    return str(path)


@pytest.mark.parametrize(
    "device",
    [
        "cuda:0",
        "cuda:7",
        "npu:0",
        "xpu",
        "xpu:1",
        "hpu:0",
        "mps",
        "privateuseone:0",
        "xla:0",
        "mlu:3",
        "musa:0",
        "hip",
    ],
)
def test_the_device_it_was_saved_from_does_not_matter(tmp_path: Path, device: str) -> None:
    uri = saved_from(tmp_path, device)
    torchs = torch.load(uri, map_location="cpu", weights_only=True)
    assert {name: tensor.tolist() for name, tensor in torchs.items()} == {
        name: tensor.tolist() for name, tensor in MODEL.items()
    }
    assert_model(uri)


def test_a_whole_run_has_the_model_s_values(tmp_path: Path) -> None:
    torch.save(READ["timm"][0], tmp_path / "pytorch_model.bin")
    report = quantize(
        str(tmp_path), str(tmp_path / "out"), QuantizationConfig(), RunConfig(engine="inline")
    ).report
    assert any("'best_acc1'" in note for note in report.notes)
    with WeightLoader(str(tmp_path / "out")) as loader:
        weights = dict(loader)
    assert set(weights) == set(MODEL)
    assert torch.allclose(weights["module.weight"], MODEL["module.weight"], atol=0.05)
