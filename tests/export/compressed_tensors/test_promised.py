"""If the manifest says what scales are, planning an export does not read them; packers still check each of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from arrowquant_dist import QuantizationConfig
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.export import ExportOptions
from arrowquant_dist.export.run import plan_export
from tests.export.datasets import made_dataset, tensors_of
from tests.export.models import RUN, exported

_Q, _DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"
_INT4 = {"quant_type": "int4", "per_channel": False, "group_size": 64}
_WHOLE = {"symmetric": False, "integer_zero_points": True}
_BFLOAT = {"scale_dtype": "bfloat16"}


def _dataset(folder: Path, settings: Mapping[str, Any], dtype: str = "bfloat16") -> str:
    generator = torch.Generator().manual_seed(7)
    made_of = {_Q: (64, 128), _DOWN: (128, 64), "model.norm.weight": (128,)}
    tensors = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in made_of.items()}
    side_files = {"config.json": json.dumps({"model_type": "llama", "dtype": dtype}).encode()}
    return made_dataset(folder, tensors, QuantizationConfig.from_dict(settings), side_files=side_files)


def _read_to_plan(dataset: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Layers whose scales are read before anything is written."""
    found: set[str] = set()
    read = Dataset.read_scales

    def counted(self: Dataset, piece: Any, **how: Any) -> Any:
        found.add(piece.block.header.layer_name)
        return read(self, piece, **how)

    with monkeypatch.context() as patched:
        patched.setattr(Dataset, "read_scales", counted)
        plan_export(dataset, str(out), ExportOptions(format="compressed-tensors", requantize=True), RUN)
    return found


def _say(dataset: str, **changed: Any) -> None:
    """In the manifest's config, whatever the rows hold."""
    path = Path(dataset) / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["config"] |= changed
    path.write_text(json.dumps(manifest))


_ONE = {"layers": _Q, "quant_type": "int4"}


@pytest.mark.parametrize(
    ("settings", "dtype", "read"),
    [
        (_BFLOAT, "bfloat16", set()),
        (_BFLOAT, "float32", set()),
        (_BFLOAT | _WHOLE, "bfloat16", set()),
        (_BFLOAT | {"overrides": [_ONE]}, "bfloat16", set()),
        (_BFLOAT | {"overrides": [_ONE | _WHOLE]}, "bfloat16", {_Q}),
        (_BFLOAT, "float16", {_Q, _DOWN}),
        (_BFLOAT | {"symmetric": False}, "bfloat16", {_Q, _DOWN}),
        (_BFLOAT | _WHOLE | {"overrides": [_ONE | {"integer_zero_points": False}]}, "float32", {_Q, _DOWN}),
        (_BFLOAT | {"overrides": [_ONE | {"scale_dtype": "float32"}]}, "bfloat16", {_Q, _DOWN}),
        ({}, "bfloat16", {_Q, _DOWN}),
    ],
)
def test_scales_are_read_to_plan_where_the_manifest_does_not_say_what_they_are(
    settings: dict[str, Any], dtype: str, read: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = _dataset(tmp_path, _INT4 | settings, dtype)
    assert _read_to_plan(dataset, tmp_path / "out", monkeypatch) == read


@pytest.mark.parametrize(
    "unknown", [{"keep_codes": True}, {"overrides": 3}, {"of a later release": 1}], ids=str
)
def test_a_manifest_that_says_it_of_other_scales_or_in_unknown_words_says_nothing(
    unknown: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes that are kept have the scales of the source."""
    dataset = _dataset(tmp_path, _INT4 | _BFLOAT)
    _say(dataset, **unknown)
    assert _read_to_plan(dataset, tmp_path / "out", monkeypatch) == {_Q, _DOWN}


@pytest.mark.parametrize("settings", [_INT4, _INT4 | _WHOLE, {"quant_type": "int8"}], ids=str)
def test_the_export_is_the_same_whether_they_were_read_or_not(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    dataset = _dataset(tmp_path, settings | _BFLOAT)
    exported(dataset, tmp_path / "known")
    _say(dataset, scale_dtype="float32")
    exported(dataset, tmp_path / "read")
    known, read = (tensors_of(tmp_path / out) for out in ("known", "read"))
    assert known.keys() == read.keys()
    assert all(torch.equal(known[name], read[name]) for name in known)


@pytest.mark.parametrize(
    ("settings", "said", "reason"),
    [
        ({}, _BFLOAT, "scales are not exact in bfloat16"),
        ({"quant_type": "int8", "per_channel": True}, _BFLOAT, "scales are not exact in bfloat16"),
        (
            _BFLOAT | {"symmetric": False},
            {"integer_zero_points": True},
            "zero points are not whole numbers within 4 bits",
        ),
    ],
)
def test_what_is_not_as_the_manifest_says_is_refused_by_layer_and_nothing_is_published(
    settings: dict[str, Any], said: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    dataset = _dataset(tmp_path, {**_INT4, **settings})
    _say(dataset, **said)
    with pytest.raises(CorruptWeights, match=reason) as raised:
        exported(dataset, tmp_path / "out")
    assert raised.value.layer in (_Q, _DOWN)
    assert not any((tmp_path / "out").rglob("*.json"))
