"""`size` gives a dataset of the requested bytes."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.config import LayerOverride
from arrowquant_dist.config.choices import QuantType
from arrowquant_dist.config.patterns import exactly
from arrowquant_dist.driver import plan_only
from arrowquant_dist.errors import InvalidConfig, TargetConflict
from arrowquant_dist.sizing import run as sizing
from arrowquant_dist.sizing import sample
from arrowquant_dist.sizing.candidates import DATA_FREE, row_weight
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
    """From sizes at which all layers are in steps to those where all are int8."""
    errors = []
    for size in (320_000, 400_000, 700_000, 1_100_000, 1_700_000):
        target = tmp_path / str(size)
        ArrowQuantizer(QuantizationConfig(size=size)).quantize(source, str(target))
        original = load_file(Path(source) / "model.safetensors")
        with WeightLoader(str(target)) as loader:
            errors.append({name: float((loader[name] - w).square().mean()) for name, w in original.items()})
        assert 0.99 * size <= parts_nbytes(target) <= size
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
    with pytest.raises(InvalidConfig, match=r"size: counts compressed bytes, but run.compression is none"):
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


def test_a_finished_target_and_one_that_was_begun_need_no_look_at_weights(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, target = QuantizationConfig(size="700kB"), str(tmp_path / "out")
    report = ArrowQuantizer(config).quantize(source, target)
    (tmp_path / "out" / "manifest.json").rename(tmp_path / "manifest.json")
    monkeypatch.setattr(sizing, "read_samples", lambda *_: pytest.fail("rows were read to choose again"))
    again = ArrowQuantizer(config).quantize(source, target)
    assert again.fingerprint == report.fingerprint
    assert ArrowQuantizer(config).quantize(source, target).notes == report.notes


def test_another_size_at_a_target_is_refused(source: str, tmp_path: Path) -> None:
    target = str(tmp_path / "out")
    ArrowQuantizer(QuantizationConfig(size="700kB")).quantize(source, target)
    with pytest.raises(TargetConflict, match="another plan"):
        ArrowQuantizer(QuantizationConfig(size="900kB")).quantize(source, target)


def misleading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A layer of which the rows that are looked at have a few large values, and all others have not."""
    monkeypatch.setattr(sample, "SAMPLE_VALUES", 1 << 15)
    rows, columns = 4096, 256
    weights = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))
    for start, stop in sample.sampled_runs(rows, (1 << 15) // columns, in_runs=False):
        weights[start:stop] **= 5
    return save_checkpoint(folder, {"layers.0.mlp.weight": weights})


def test_a_size_that_what_was_written_passes_is_an_error_and_nothing_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = misleading(tmp_path / "source", monkeypatch), tmp_path / "out"
    with pytest.raises(
        InvalidConfig, match=r"size asks for at most 300000: .* try --size \d+ with --overwrite"
    ):
        ArrowQuantizer(QuantizationConfig(size=300_000)).quantize(source, str(target))
    assert not (target / "manifest.json").exists()
    with pytest.raises(InvalidConfig, match="nothing was published"):
        ArrowQuantizer(QuantizationConfig(size=300_000)).quantize(source, str(target))


def test_a_quality_that_what_was_written_lacks_is_an_error_and_nothing_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = misleading(tmp_path / "source", monkeypatch), tmp_path / "out"
    with pytest.raises(
        InvalidConfig, match=r"min_quality asks for 0.99: .*--min-quality 0\.\d+ with --overwrite"
    ):
        ArrowQuantizer(QuantizationConfig(min_quality=0.99)).quantize(source, str(target))
    assert not (target / "manifest.json").exists()


def test_a_quality_of_the_weights_holds_and_costs_more_the_better_it_is(source: str, tmp_path: Path) -> None:
    sizes = []
    for least in (0.9, 0.98, 0.999):
        target = tmp_path / str(least)
        report = ArrowQuantizer(QuantizationConfig(min_quality=least)).quantize(source, str(target))
        assert report.accuracy is not None
        assert report.accuracy.cosine is not None
        assert 0.0 <= report.accuracy.cosine.mean - least <= 0.06 * (1 - least)
        sizes.append(parts_nbytes(target))
    assert sizes == sorted(sizes)


def test_the_table_of_a_quality_is_in_the_plan_as_it_is_going_to_be(source: str, tmp_path: Path) -> None:
    config, target = QuantizationConfig(min_quality=0.98), tmp_path / "out"
    plan = plan_only(source, str(target), config, RunConfig())
    [note] = [note for note in plan.notes if note.startswith("min_quality: ")]
    chosen = {override["layers"]: override for override in plan.config["overrides"]}
    free = [block for block in plan.blocks if block.spec.is_quantized]
    assert {*chosen} == {exactly(block.layer.name) for block in free}
    for block in free:
        said = chosen[exactly(block.layer.name)]
        assert (said["quant_type"], said["method"]) == (block.spec.quant_type, block.spec.method)
        assert (said.get("step") or 0.0) == block.spec.step
    assert plan.config["chosen_for"]["min_quality"] == 0.98
    ways = re.findall(r"[:,] ([a-z0-9 ]+?) (\d+) layers? ", note)
    assert sum(int(count) for _, count in ways) == len({block.layer.name for block in plan.blocks})
    assert {way.split()[0] for way, _ in ways} == {block.spec.quant_type for block in plan.blocks}
    about = re.search(r"the parts take about (\d+) bytes for a mean weight cosine of about 0\.98", note)
    assert about is not None
    assert not target.exists()
    report = ArrowQuantizer(config).quantize(source, str(target))
    assert (report.fingerprint, note in report.notes) == (plan.fingerprint, True)
    assert int(about[1]) == pytest.approx(parts_nbytes(target), rel=0.01)


def test_a_quality_that_layers_of_a_said_type_rule_out_is_refused_with_the_best(
    source: str, tmp_path: Path
) -> None:
    config = QuantizationConfig(min_quality=0.9999, overrides=[LayerOverride("layers.3.weight", "int2")])
    with pytest.raises(InvalidConfig, match=r"min_quality: no size has .* the best is 0\.\d+"):
        plan_only(source, str(tmp_path / "out"), config, RunConfig())


def test_a_layer_whose_values_lie_on_a_grid_of_groups_gets_that_grid(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(-7, 8, (1024, 256), generator=generator).float()
    scales = (0.5 + torch.rand(1024, 8, generator=generator)).repeat_interleave(32, dim=1)
    dense = torch.randn(1024, 256, generator=generator)
    weights = {"layers.0.mlp.weight": codes * scales, "layers.1.mlp.weight": dense}
    source = save_checkpoint(tmp_path / "source", weights)
    planned = plan_only(source, str(tmp_path / "out"), QuantizationConfig(size="5.2bits"), RunConfig())
    specs = {block.layer.name: block.spec for block in planned.blocks}
    assert (specs["layers.0.mlp.weight"].quant_type, specs["layers.0.mlp.weight"].group_size) == ("int4", 32)
    assert specs["layers.1.mlp.weight"].method == "size"


def test_it_is_no_worse_than_any_plain_way_of_as_many_bytes(source: str, tmp_path: Path) -> None:
    original = load_file(Path(source) / "model.safetensors")

    def error(target: Path) -> float:
        with WeightLoader(str(target)) as loader:
            found = sum(
                row_weight(1000.0, DATA_FREE if "embed" in name else None)
                * float((loader[name] - w).square().sum() / w.square().sum())
                * w.numel()
                for name, w in original.items()
            )
        return float(found)

    ways: list[tuple[QuantType, int]] = [("int4", 128), ("int3", 32), ("int2", 64), ("int8", 128)]
    for quant, group in ways:
        plain, sized = tmp_path / f"{quant}-{group}", tmp_path / f"{quant}-{group}-size"
        config = QuantizationConfig(quant, per_channel=False, group_size=group, symmetric=False)
        ArrowQuantizer(config).quantize(source, str(plain))
        ArrowQuantizer(QuantizationConfig(size=parts_nbytes(plain))).quantize(source, str(sized))
        assert parts_nbytes(sized) <= parts_nbytes(plain)
        assert error(sized) < error(plain)


def test_layers_with_names_of_thousands_of_characters_are_in_the_chosen_config(tmp_path: Path) -> None:
    name = "layers." + "a.b" * 1000 + ".weight"
    source = save_checkpoint(tmp_path / "source", {name: torch.randn(64, 64)})
    planned = plan_only(source, str(tmp_path / "out"), QuantizationConfig(size="20kB"), RunConfig())
    values = {key: value for key, value in planned.config.items() if key != "run"}
    again = plan_only(source, str(tmp_path / "out"), QuantizationConfig.from_dict(values), RunConfig())
    assert again.fingerprint == planned.fingerprint


def test_experts_in_one_tensor_have_a_step_a_row_of_each_expert(tmp_path: Path) -> None:
    weights = (
        torch.randn(8, 64, 96, generator=torch.Generator().manual_seed(4))
        * torch.logspace(-3, 0, 8)[:, None, None]
    )
    source = save_checkpoint(tmp_path / "source", {"layers.0.mlp.experts.down_proj": weights})
    ArrowQuantizer(QuantizationConfig(size="3bits")).quantize(source, str(tmp_path / "out"))
    assert parts_nbytes(tmp_path / "out") <= 3 * weights.numel() / 8
    with WeightLoader(str(tmp_path / "out")) as loader:
        errors = (loader["layers.0.mlp.experts.down_proj"] - weights).square().sum(
            (1, 2)
        ) / weights.square().sum((1, 2))
    assert float(errors.max()) < 1.5 * float(errors.min())
