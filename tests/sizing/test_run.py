"""`size`: a dataset of the bytes that were asked for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.config import LayerOverride
from arrowquant_dist.driver import plan_only
from arrowquant_dist.errors import InvalidConfig
from tests.sources import random_weights, save_checkpoint


def parts_nbytes(target: Path) -> int:
    return sum(path.stat().st_size for path in (target / "weights").rglob("*.parquet"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    weights = random_weights(6, 384, 512, torch.float32)
    generator = torch.Generator().manual_seed(1)
    weights["embed_tokens.weight"] = torch.randn(4000, 256, generator=generator) * 0.05
    return save_checkpoint(tmp_path_factory.mktemp("source"), weights)


@pytest.mark.parametrize("size", [400_000, 700_000, 1_100_000, 1_500_000])
def test_the_parts_have_the_size_within_a_hundredth_and_never_more(
    source: str, tmp_path: Path, size: int
) -> None:
    ArrowQuantizer(QuantizationConfig(size=size)).quantize(source, str(tmp_path / "out"))
    assert 0.99 * size <= parts_nbytes(tmp_path / "out") <= size


def test_bits_are_those_of_all_bytes_by_all_values(source: str, tmp_path: Path) -> None:
    report = ArrowQuantizer(QuantizationConfig(size="2.5bits")).quantize(source, str(tmp_path / "out"))
    assert 2.475 <= 8 * parts_nbytes(tmp_path / "out") / report.totals.params <= 2.5


def test_the_same_command_resumes_by_the_same_table(source: str, tmp_path: Path) -> None:
    config, target = QuantizationConfig(size="700kB"), str(tmp_path / "out")
    planned = plan_only(source, target, config, RunConfig())
    report = ArrowQuantizer(config).quantize(source, target)
    assert report.fingerprint == planned.fingerprint
    assert plan_only(source, target, config, RunConfig()).fingerprint == planned.fingerprint


def test_a_larger_size_has_less_error_in_every_layer(source: str, tmp_path: Path) -> None:
    errors = []
    for size in (400_000, 700_000, 1_100_000):
        target = tmp_path / str(size)
        ArrowQuantizer(QuantizationConfig(size=size)).quantize(source, str(target))
        original = load_file(Path(source) / "model.safetensors")
        with WeightLoader(str(target)) as loader:
            errors.append({name: float((loader[name] - w).square().mean()) for name, w in original.items()})
    assert all(small[name] >= large[name] for small, large in pairwise(errors) for name in small)


def test_layers_whose_type_an_override_says_stay_so_and_count(source: str, tmp_path: Path) -> None:
    overrides = [LayerOverride("layers.3.weight", "int8"), LayerOverride("layers.4", "fp16")]
    config = QuantizationConfig(size=1_100_000, overrides=overrides)
    ArrowQuantizer(config).quantize(source, str(tmp_path / "out"))
    specs = {
        b.layer.name: b.spec for b in plan_only(source, str(tmp_path / "out"), config, RunConfig()).blocks
    }
    assert (specs["layers.3.weight"].quant_type, specs["layers.3.weight"].method) == ("int8", "rtn")
    assert specs["layers.4.weight"].quant_type == "fp16"
    assert specs["layers.2.weight"].method == "size"
    assert 0.99 * 1_100_000 <= parts_nbytes(tmp_path / "out") <= 1_100_000


def test_without_compression_there_is_nothing_to_choose_by(source: str, tmp_path: Path) -> None:
    run = RunConfig(compression="none")
    with pytest.raises(InvalidConfig, match=r"size: counts compressed bytes, and run.compression is none"):
        plan_only(source, str(tmp_path / "out"), QuantizationConfig(size="700kB"), run)


def test_too_small_a_size_is_refused_with_the_least_that_is_possible(source: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"size: 5000 bytes are too few .* at least (\d+)"):
        plan_only(source, str(tmp_path / "out"), QuantizationConfig(size=5000), RunConfig())
    assert not (tmp_path / "out").exists()


def test_what_was_chosen_is_a_config_that_makes_the_same_dataset(source: str, tmp_path: Path) -> None:
    planned = plan_only(source, str(tmp_path / "out"), QuantizationConfig(size="700kB"), RunConfig())
    values = {key: value for key, value in planned.config.items() if key != "run"}
    assert "size" not in values
    again = plan_only(source, str(tmp_path / "out"), QuantizationConfig.from_dict(values), RunConfig())
    assert again.fingerprint == planned.fingerprint
    assert "size: the parts take about" in planned.notes[-1]


def test_more_room_than_codes_need_goes_to_smaller_groups_and_16_bits(source: str, tmp_path: Path) -> None:
    sizes = (2_300_000, 3_000_000, 3_600_000)
    for size in sizes:
        ArrowQuantizer(QuantizationConfig(size=size)).quantize(source, str(tmp_path / str(size)))
    found = [parts_nbytes(tmp_path / str(size)) for size in sizes]
    assert found == sorted(found)
    assert all(nbytes <= size for nbytes, size in zip(found, sizes, strict=True))


def test_a_size_beyond_16_bits_keeps_every_layer(source: str, tmp_path: Path) -> None:
    report = ArrowQuantizer(QuantizationConfig(size="1GB")).quantize(source, str(tmp_path / "out"))
    assert {layer.quant_type for layer in report.quant_types} <= {"fp16", "none"}
