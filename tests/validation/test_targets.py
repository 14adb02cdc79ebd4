"""Targets from a file: the package's own, a user's, and errors by key and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.validation.measures import MEASURABLES
from arrowquant_dist.validation.targets import parse_targets, read_targets


def test_the_classic_targets_are_those_of_the_package() -> None:
    classic = read_targets(None)
    assert classic.of("int8") == {
        "compression_vs_fp16": 2.0,
        "weight_cosine": 0.85,
        "precision_loss": 0.15,
        "quantize_seconds": 60.0,
        "load_seconds": 5.0,
    }
    assert classic.of("int2")["compression_vs_fp16"] == 4.0
    assert classic.of("int2")["weight_cosine"] == 0.7
    assert classic.of("int4") == {"quantize_seconds": 60.0, "load_seconds": 5.0}


def test_a_config_s_own_target_wins() -> None:
    found = parse_targets(b"every: {load_seconds: 5}\nconfigs: {int8: {load_seconds: 1}}", "mine.yaml")
    assert found.of("int8") == {"load_seconds": 1.0}
    assert found.of("int4") == {"load_seconds": 5.0}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            "configs:\n  int8:\n    compresion_vs_fp16: 2\n",
            r"configs\.int8\.compresion_vs_fp16: .*'compression_vs_fp16'.*line 3",
        ),
        ("evry: {load_seconds: 5}\n", "evry: .*'every'"),
        ("load_seconds: 5\n", "load_seconds: does not belong here; it belongs under `every:`"),
        ("every:\n  weight_cosine: 1.5\n", r"every\.weight_cosine: must be from -1 to 1.*line 2"),
        ("every: {load_seconds: fast}\n", r"every\.load_seconds: must be a number"),
        ("every: {load_seconds: }\n", r"every\.load_seconds: has no value"),
        ("every: [1]\n", "every: must be a mapping"),
        ("", "is empty"),
        ("every: {a: 1\n", "is not valid YAML"),
        ("every: {load_seconds: 5, load_seconds: 6}\n", "'load_seconds' is there twice"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "targets.yaml"
    path.write_text(content)
    with pytest.raises(InvalidConfig, match=reason) as raised:
        read_targets(path)
    assert raised.value.uri == str(path)


def test_targets_of_a_config_that_nobody_knows_are_refused() -> None:
    found = parse_targets(b"configs: {imt8: {load_seconds: 1}, int4: {load_seconds: 1}}", "mine.yaml")
    with pytest.raises(InvalidConfig, match=r"configs\.imt8: .*did you mean 'int8'"):
        found.refuse_unknown(["int8"])
    assert parse_targets(b"configs: {int4: {}}", "mine.yaml").unused(["int8"]) == ["int4"]


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="the file of targets does not exist"):
        read_targets(tmp_path / "missing.yaml")


@pytest.mark.parametrize("measurable", MEASURABLES, ids=lambda one: one.key)
def test_a_figure_has_to_be_better_than_its_target(measurable: object) -> None:
    one = next(each for each in MEASURABLES if each is measurable)
    target = 0.5
    assert not one.holds(target, target)
    assert one.holds(target + one.better * 0.1, target)
    assert not one.holds(target - one.better * 0.1, target)
    assert one.shown_target(target)[0] == (">" if one.better > 0 else "<")
