"""NaN and inf are an error in a layer to be quantized; in a kept layer, a note in the report names the layer."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.config import LayerOverride
from arrowquant_dist.errors import UnquantizableWeights
from arrowquant_dist.verify import verify
from tests.conftest import CHECKOUT
from tests.datasets import rows_of
from tests.integration.program import run
from tests.sources import save_checkpoint

INF, NAN = float("inf"), float("nan")
KEPT: dict[str, tuple[torch.Tensor, str]] = {
    "audio.input_max": (torch.tensor(INF), "1 inf among 1 value"),
    "audio.input_min": (torch.tensor(-INF, dtype=torch.bfloat16), "1 -inf among 1 value"),
    "blocks.0.attn_mask": (torch.full((8, 8), -INF).triu(1), "28 -inf among 64 values"),
    "bn.running_var": (torch.tensor([NAN, 1.0, NAN], dtype=torch.float64), "2 NaN among 3 values"),
    "head.clamp": (torch.tensor([[INF, -INF, NAN, 0.5]]), "1 NaN, 1 inf, 1 -inf among 4 values"),
    "embed.weight": (torch.tensor([[NAN, 2.0], [INF, 0.1]]), "1 NaN, 1 inf among 4 values"),
}
CONFIG = QuantizationConfig(mixed_precision_layers=["embed"])


def weights() -> dict[str, torch.Tensor]:
    return {"q.weight": torch.full((4, 8), 2.0), **{name: tensor for name, (tensor, _) in KEPT.items()}}


def test_kept_layers_keep_them_and_the_report_names_each(tmp_path: Path) -> None:
    source, target = save_checkpoint(tmp_path / "source", weights()), tmp_path / "out"
    ArrowQuantizer(CONFIG).quantize(source, str(target))
    assert verify(str(target)).problems == ()
    with WeightLoader(str(target)) as loader:
        for name, tensor in weights().items():
            assert loader[name].dtype == tensor.dtype
            torch.testing.assert_close(loader[name], tensor, rtol=0, atol=0, equal_nan=True)
    expected = {f"{name!r} holds {what}, stored as they are" for name, (_, what) in KEPT.items()}
    report = json.loads((target / "report" / "report.json").read_text())
    assert {note for note in report["notes"] if "holds" in note} == expected
    page = (target / "report" / "report.md").read_text()
    assert all(name in page for name in ("input_max", "attn\\_mask", "28 -inf"))
    found = pq.read_table(target / "report" / "layers.parquet").to_pylist()
    assert {row["layer_name"]: row["non_finite"] for row in found} == {
        "q.weight": None,
        **{name: what.partition(" among ")[0] for name, (_, what) in KEPT.items()},
    }


def test_the_terminal_names_them_as_well(tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "source", weights())
    done = run("quantize", source, tmp_path / "out", "--config", CHECKOUT / "configs" / "mixed.yaml")
    assert done.returncode == 0
    assert "'bn.running_var' holds 2 NaN among 3 values, stored as they are" in " ".join(
        (done.stdout + done.stderr).split()
    )


def test_a_large_kept_layer_counts_over_its_row_blocks_and_tied_names_once(tmp_path: Path) -> None:
    mask = torch.zeros(64, 1024)
    mask[3, 5] = mask[40, 7] = -INF
    mask[63, 1023] = NAN
    source = tmp_path / "source"
    source.mkdir()
    torch.save({"a.mask": mask, "b.mask": mask}, source / "pytorch_model.bin")
    target = tmp_path / "out"
    report = ArrowQuantizer(CONFIG, RunConfig(block_bytes=64 << 10)).quantize(str(source), str(target))
    assert len(rows_of(target)) == 4
    assert [note for note in report.notes if "holds" in note] == [
        "'a.mask' holds 1 NaN, 2 -inf among 65536 values, stored as they are"
    ]
    with WeightLoader(str(target)) as loader:
        torch.testing.assert_close(loader["b.mask"], mask, rtol=0, atol=0, equal_nan=True)


def test_of_very_many_the_notes_name_twenty_and_say_how_many_more(tmp_path: Path) -> None:
    tensors = {f"bounds.{index:02}": torch.tensor(INF) for index in range(30)}
    report = ArrowQuantizer(CONFIG).quantize(
        save_checkpoint(tmp_path / "source", {"q.weight": torch.ones(2, 2), **tensors}), str(tmp_path / "out")
    )
    notes = [note for note in report.notes if "inf" in note]
    assert len(notes) == 21
    assert notes[-1] == "10 more kept layers hold NaN or inf; report/layers.parquet names all of them"


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "config",
    [QuantizationConfig(), QuantizationConfig("int4", per_channel=False, group_size=0)],
    ids=["per row", "per tensor"],
)
def test_what_is_quantized_ends_the_run(config: QuantizationConfig, value: float, tmp_path: Path) -> None:
    weight = torch.ones(4, 8)
    weight[2, 3] = value
    source = save_checkpoint(tmp_path / "source", {"q.weight": weight})
    with pytest.raises(UnquantizableWeights, match=r"'q\.weight'.*at index \[2, 3\]"):
        ArrowQuantizer(config).quantize(source, str(tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_mask_that_an_override_quantizes_is_an_error_again(tmp_path: Path) -> None:
    config = QuantizationConfig(overrides=[LayerOverride("*mask", "int8")])
    source = save_checkpoint(tmp_path / "source", weights())
    with pytest.raises(UnquantizableWeights, match="attn_mask"):
        ArrowQuantizer(config).quantize(source, str(tmp_path / "out"))


def test_what_the_config_keeps_because_of_them_is_named_too(tmp_path: Path) -> None:
    weight = torch.ones(4, 8)
    weight[2, 3] = NAN
    source = save_checkpoint(tmp_path / "source", {"q.weight": weight, "k.weight": torch.ones(4, 8)})
    report = ArrowQuantizer(QuantizationConfig(non_finite="keep")).quantize(source, str(tmp_path / "out"))
    assert report.notes == ("'q.weight' holds 1 NaN among 32 values, stored as they are",)
