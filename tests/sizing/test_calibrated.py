"""`size` with `hessians`: the requested bytes, on gptq's target."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.driver import plan_only
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.method_names import MethodName
from arrowquant_dist.plan import Plan
from arrowquant_dist.sizing import table_for_calibration
from arrowquant_dist.storage.local import LocalStore
from tests.methods.plain_gptq import output_error
from tests.methods.statistics_made import Parts, save_statistics, statistics
from tests.sources import random_weights, save_checkpoint

ROWS, COLUMNS = 384, 256
SIZE = 300_000


def parts_nbytes(target: Path) -> int:
    return sum(path.stat().st_size for path in (target / "weights").rglob("*.parquet"))


def found_statistics() -> dict[str, Parts]:
    layers = {f"layers.{i}.weight": statistics(ROWS, COLUMNS, i, corrected=i % 2 == 1) for i in range(5)}
    layers["layers.5.weight"] = {"unseen": np.empty(0, np.float32)}
    return {**layers, "embed_tokens.weight": {"counts": np.ones(2000, np.float32)}}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    found = random_weights(6, ROWS, COLUMNS, torch.float32)
    generator = torch.Generator().manual_seed(1)
    found["embed_tokens.weight"] = torch.randn(2000, 128, generator=generator) * 0.05
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, torch.Tensor]) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("source"), weights)


@pytest.fixture(scope="module")
def hessians(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_statistics(tmp_path_factory.mktemp("statistics"), found_statistics())


def planned(source: str, target: Path, config: QuantizationConfig) -> Plan:
    return plan_only(source, str(target), config, RunConfig())


@pytest.mark.parametrize("size", [150_000, SIZE, 500_000])
def test_the_parts_have_the_size_within_a_hundredth_and_never_more(
    source: str, hessians: str, tmp_path: Path, size: int
) -> None:
    ArrowQuantizer(QuantizationConfig(size=size, hessians=hessians)).quantize(source, str(tmp_path / "out"))
    assert 0.99 * size <= parts_nbytes(tmp_path / "out") <= size


def test_parts_of_a_few_kilobytes_have_it_too(tmp_path: Path) -> None:
    """Of which what says how long values are is a hundredth, and depends on these."""
    source = save_checkpoint(tmp_path, random_weights(10, 32, 64, torch.float32))
    layers = {f"layers.{i}.weight": statistics(32, 64, i, corrected=True) for i in range(10)}
    config = QuantizationConfig(size=16_000, hessians=save_statistics(tmp_path / "statistics", layers))
    ArrowQuantizer(config).quantize(source, str(tmp_path / "out"))
    assert 0.985 * 16_000 <= parts_nbytes(tmp_path / "out") <= 16_000


def test_layers_with_statistics_are_coded_by_gptq_in_one_step_embeddings_by_their_counts_and_others_by_size(
    source: str, hessians: str, tmp_path: Path
) -> None:
    found = planned(source, tmp_path / "out", QuantizationConfig(size=SIZE, hessians=hessians))
    specs = {block.layer.name: block.spec for block in found.blocks}
    assert {specs[f"layers.{i}.weight"].method for i in range(5)} == {"gptq"}
    assert len({specs[f"layers.{i}.weight"].step for i in range(6)}) == 1
    assert (specs["layers.5.weight"].method, specs["embed_tokens.weight"].method) == ("size", "counted")
    assert specs["embed_tokens.weight"].row_exponent > 0
    assert found.notes[-1].endswith(
        "size instead of gptq for 1 layer, for which hessians has only 'unseen' and no statistics of inputs: "
        "layers.5.weight"
    )


def test_what_was_chosen_is_a_config_that_makes_the_same_dataset(
    source: str, hessians: str, tmp_path: Path
) -> None:
    found = planned(source, tmp_path / "out", QuantizationConfig(size=SIZE, hessians=hessians))
    values = {key: value for key, value in found.config.items() if key != "run"}
    assert "size" not in values
    again = planned(source, tmp_path / "out", QuantizationConfig.from_dict(values))
    assert again.fingerprint == found.fingerprint


def test_outputs_are_nearer_to_the_original_s_than_without_statistics(
    source: str, hessians: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Of layers without a correction, whose target is what they are."""
    errors = []
    for name, config in (("free", {}), ("calibrated", {"hessians": hessians})):
        target = str(tmp_path / name)
        ArrowQuantizer(QuantizationConfig(size=SIZE, **config)).quantize(source, target)  # type: ignore[arg-type]
        with WeightLoader(target) as loader:
            found = [
                output_error(
                    (weights[layer].double() - loader[layer].double()).numpy(),
                    found_statistics()[layer]["hessian"].astype(np.float64),
                )
                for layer in ("layers.0.weight", "layers.2.weight", "layers.4.weight")
            ]
        errors.append(sum(found))
    assert errors[1] < 0.5 * errors[0]


def test_a_layer_that_the_statistics_say_nothing_of_is_refused_by_name(source: str, tmp_path: Path) -> None:
    known = found_statistics()
    del known["layers.3.weight"]
    hessians = save_statistics(tmp_path / "statistics", known)
    with pytest.raises(InvalidConfig, match=r"layers.3.weight"):
        planned(source, tmp_path / "out", QuantizationConfig(size=SIZE, hessians=hessians))


def test_more_bytes_than_steps_have_use_for_are_used_as_without_statistics(
    source: str, hessians: str, tmp_path: Path
) -> None:
    config = QuantizationConfig(size=1_400_000)
    found = planned(source, tmp_path / "out", config.replace(hessians=hessians))
    plain = planned(source, tmp_path / "out", config)
    assert [block.spec for block in found.blocks] == [block.spec for block in plain.blocks]
    assert not found.side_inputs


@pytest.mark.parametrize("hessians_said", [None, "somewhere"])
def test_a_calibration_by_a_size_has_one_step_on_the_target_of_its_statistics_and_finer_embeddings_than_without(
    source: str, tmp_path: Path, hessians_said: str | None
) -> None:
    checkpoint = open_checkpoint(source)
    config = QuantizationConfig(size=SIZE, hessians=hessians_said)
    table = table_for_calibration(checkpoint, config, RunConfig(), str(tmp_path / "statistics"), {})
    found = {override.layers: (override.method, override.step) for override in table.overrides}
    embedding = found.pop("/^embed_tokens\\.weight$/")
    (step,) = {step or 0.0 for _, step in found.values()}
    assert table.hessians == str(tmp_path / "statistics")
    assert {*found} == {f"/^layers\\.{i}\\.weight$/" for i in range(6)}
    assert {method for method, _ in found.values()} == {"gptq"}
    assert embedding[0] == "counted"
    assert embedding[1] == pytest.approx(2.0 * step / 8000**0.2, rel=1e-4)
    overrides = [replace(override, method="size") for override in table.overrides]
    free = QuantizationConfig(overrides=overrides)
    ArrowQuantizer(free).quantize(source, str(tmp_path / "out"))
    assert 0.99 * SIZE <= parts_nbytes(tmp_path / "out") <= SIZE


def test_layers_whose_errors_count_more_have_finer_steps_and_all_together_the_same_size(
    source: str, tmp_path: Path
) -> None:
    relative = {f"layers.{i}.weight": step for i, step in enumerate([0.5, 1.5, 1.0, 1.0, 0.8])}
    config = QuantizationConfig(size=SIZE)
    table = table_for_calibration(open_checkpoint(source), config, RunConfig(), "elsewhere", relative)
    steps = {override.layers: override.step or 0.0 for override in table.overrides}
    shared = steps["/^layers\\.5\\.weight$/"]
    for name, step in relative.items():
        assert steps[f"/^{re.escape(name)}$/"] == pytest.approx(step * shared, rel=1e-4)
    overrides = [replace(override, method="size") for override in table.overrides]
    ArrowQuantizer(QuantizationConfig(overrides=overrides)).quantize(source, str(tmp_path / "out"))
    assert 0.99 * SIZE <= parts_nbytes(tmp_path / "out") <= SIZE


class Arrays(dict[str, np.ndarray]):
    """A sizing.run.KnownArrays."""

    def read(self, name: str) -> np.ndarray:
        return self[name].copy()


@pytest.mark.parametrize("sensitive", [False, True], ids=["counts", "sensitivity too"])
def test_a_calibration_by_a_size_knows_what_rows_by_their_counts_take(
    source: str, tmp_path: Path, *, sensitive: bool
) -> None:
    counts = np.zeros(1900)  # higher ids were in no text
    counts[[3, 700, *range(1000, 1900)]] = 400
    known, arrays = found_statistics(), Arrays()
    known["embed_tokens.weight"] = {"counts": np.pad(counts, (0, 100)).astype(np.float32)}
    if sensitive:
        arrays["embed_tokens.weight"] = statistics(1, 128)["hessian"]
        known["embed_tokens.weight"]["sensitivity"] = arrays["embed_tokens.weight"]
    hessians = save_statistics(tmp_path / "statistics", known)
    config = QuantizationConfig(size=SIZE)
    table = table_for_calibration(open_checkpoint(source), config, RunConfig(), hessians, {}, counts, arrays)
    methods: dict[MethodName | None, MethodName] = {"gptq": "size", "counted": "counted"}
    overrides = [replace(each, method=methods[each.method]) for each in table.overrides]
    ArrowQuantizer(table.replace(overrides=overrides)).quantize(source, str(tmp_path / "out"))
    assert 0.99 * SIZE <= parts_nbytes(tmp_path / "out") <= SIZE
    chosen = config.replace(hessians=hessians)
    ArrowQuantizer(chosen).quantize(source, str(tmp_path / "chosen"))
    assert 0.99 * SIZE <= parts_nbytes(tmp_path / "chosen") <= SIZE


def recorded(folder: Path, table: QuantizationConfig) -> str:
    """Statistics of a calibration by `table`, as if layers ran in the order of their numbers."""
    hessians = save_statistics(folder, found_statistics())
    layers = ["embed_tokens.weight", *(f"layers.{i}.weight" for i in range(6))]
    by = {key: value for key, value in table.to_dict().items() if key != "hessians"}
    record = {
        "format_version": 2,
        "config": by,
        "layers": [{"name": name} for name in layers],
        "weights": {},
    }
    (folder / "calibration.json").write_text(json.dumps(record))
    return hessians


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often an object of each path was read."""
    found, own = Counter[str](), LocalStore.read

    def read(store: LocalStore, path: str) -> bytes:
        found[path] += 1
        return own(store, path)

    monkeypatch.setattr(LocalStore, "read", read)
    return found


def test_the_steps_are_those_that_the_calibration_of_that_size_had_and_the_last_layers_take_the_rest(
    source: str, tmp_path: Path, asked: Counter[str]
) -> None:
    config = QuantizationConfig(size=SIZE)
    table = table_for_calibration(open_checkpoint(source), config, RunConfig(), "elsewhere", {})
    hessians = recorded(tmp_path / "statistics", table)
    ArrowQuantizer(config.replace(hessians=hessians)).quantize(source, str(tmp_path / "out"))
    assert 0.99 * SIZE <= parts_nbytes(tmp_path / "out") <= SIZE
    asked.clear()
    found = planned(source, tmp_path / "out", config.replace(hessians=hessians))
    assert asked["calibration.json"] == 1  # it says of which weights statistics are, and by which steps
    steps = {f"/^{re.escape(block.layer_name)}$/": block.spec.step for block in found.blocks}
    differ = {override.layers for override in table.overrides if steps[override.layers] != override.step}
    assert differ <= {"/^layers\\.3\\.weight$/", "/^layers\\.4\\.weight$/"}


@pytest.mark.parametrize("other", [{"size": SIZE + 9000}, {"size": SIZE, "non_finite": "keep"}])
def test_steps_of_a_calibration_for_something_else_are_not_taken(
    source: str, hessians: str, tmp_path: Path, other: dict[str, Any]
) -> None:
    asked = QuantizationConfig(**other)
    table = table_for_calibration(open_checkpoint(source), asked, RunConfig(), "elsewhere", {})
    of_other = recorded(tmp_path / "statistics", table)
    config = QuantizationConfig(size=SIZE)
    found = planned(source, tmp_path / "out", config.replace(hessians=of_other))
    plain = planned(source, tmp_path / "out", config.replace(hessians=hessians))
    assert [block.spec for block in found.blocks] == [block.spec for block in plain.blocks]


def test_too_small_a_size_is_refused(source: str, hessians: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"size: 5000 bytes are too few"):
        planned(source, tmp_path / "out", QuantizationConfig(size=5000, hessians=hessians))
