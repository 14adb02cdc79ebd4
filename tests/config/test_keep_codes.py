"""keep_codes: what it decides, what takes precedence over it, and what happens to layers without codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from arrowquant_dist.config import (
    LayerOverride,
    NotKept,
    QuantizationConfig,
    QuantSpec,
    RunConfig,
    SpecResolver,
    load_config,
    parse_config,
)
from arrowquant_dist.errors import InvalidConfig

CODES = QuantSpec("int4", per_channel=False, group_size=32, symmetric=True, method="source")
NOT_KEPT = NotKept("they have a form that V2 does not have")
SHAPE = (64, 96)


def resolved(
    config: QuantizationConfig, name: str = "a.weight", codes: QuantSpec | NotKept | None = CODES
) -> tuple[str, str, str | None]:
    """quant_type, method and the reason why it is kept."""
    found = SpecResolver(config).resolve(name, SHAPE, "float32", codes=codes)
    return found.spec.quant_type, found.spec.method, found.kept_reason


def test_layers_without_codes_stay_as_they_are_unless_a_type_is_said() -> None:
    assert resolved(QuantizationConfig(keep_codes=True), codes=None) == (
        "none",
        "none",
        "holds no codes (keep_codes)",
    )
    assert resolved(QuantizationConfig("int4", keep_codes=True), codes=None) == ("int4", "mse", None)
    assert resolved(QuantizationConfig("fp16", keep_codes=True), codes=None)[0] == "fp16"


def test_codes_come_before_all_but_an_override_with_a_type() -> None:
    config = QuantizationConfig(
        "int8",
        keep_codes=True,
        mixed_precision_layers=["a.weight"],
        overrides=[LayerOverride("b.*", "int2"), LayerOverride("c.*", group_size=8)],
    )
    assert resolved(config) == ("int4", "source", None)
    assert resolved(config, "b.weight") == ("int2", "mse", None)
    assert resolved(config, "c.weight") == ("int4", "source", None)
    assert resolved(config, "model.layers.0.mlp.gate.weight") == ("int4", "source", None)
    resolver = SpecResolver(config)
    for name in ("b.weight", "c.weight"):
        resolver.resolve(name, SHAPE, "float32", codes=CODES)
    resolver.check_matches(["b.weight", "c.weight"])
    (note,) = (note for note in resolver.notes() if "no effect" in note)
    assert "'c.*'" in note


def test_codes_that_can_not_be_kept_are_named_by_reason_after_the_last_layer() -> None:
    config = QuantizationConfig(keep_codes=True, overrides=[LayerOverride("b.*", "fp16")])
    resolver = SpecResolver(config)
    for name in ("a.weight", "b.weight", "c.weight"):
        resolver.resolve(name, SHAPE, "float32", codes=NOT_KEPT)
    resolver.resolve("d.weight", SHAPE, "float32", codes=NotKept("1-D codes have no rows"))
    with pytest.raises(InvalidConfig) as error:
        resolver.check_matches(["a.weight", "b.weight"])
    message = error.value.message
    assert message.startswith("keep_codes: codes that V2 cannot store exactly")
    assert "those of a.weight, c.weight: they have a form that V2 does not have" in message
    assert "those of d.weight: 1-D codes have no rows" in message
    assert "b.weight" not in message


def test_a_source_without_codes_is_no_source_to_keep_codes_of() -> None:
    resolver = SpecResolver(QuantizationConfig(keep_codes=True))
    resolver.resolve("a.weight", SHAPE, "float32")
    with pytest.raises(InvalidConfig, match=r"keep_codes: no layer of the source has codes .* leave it out"):
        resolver.check_matches(["a.weight"])


@pytest.mark.parametrize("quant_type", ["none", "int4", "fp16"])
def test_a_config_comes_back_from_its_values(quant_type: str) -> None:
    said = {} if quant_type == "none" else {"quant_type": quant_type}
    config = QuantizationConfig(keep_codes=True, **said)  # type: ignore[arg-type]
    assert config.quant_type == quant_type
    assert config.to_dict()["keep_codes"] is True
    assert QuantizationConfig.from_dict(config.to_dict()) == config
    assert "keep_codes" not in QuantizationConfig().to_dict()


def test_the_command_line_s_key_wins_before_defaults_follow(tmp_path: Path) -> None:
    keep = {"keep_codes": True}
    assert parse_config(b"group_size: 64\n", instead=keep)[0].quant_type == "none"
    assert parse_config(b"quant_type: int8\n", instead=keep)[0].quant_type == "int8"
    assert parse_config(b"keep_codes: false\n", instead=keep)[0].keep_codes
    expected = QuantizationConfig(keep_codes=True), RunConfig()
    assert parse_config(b"keep_codes: true\n") == expected
    (tmp_path / "c.yaml").write_text("symmetric: true\n")
    assert load_config(tmp_path / "c.yaml", instead=keep) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("keep_codes: 1", "keep_codes: must be true or false"),
        ("quant_type: none", "quant_type: must be one of int8"),
        ("{keep_codes: false, quant_type: none}", "quant_type: must be one of int8"),
        ("run: {keep_codes: true}", "keep_codes: does not belong here"),
        (
            "{keep_codes: true, overrides: [{layers: a, quant_type: none}]}",
            r"overrides\[0\].quant_type: must be one",
        ),
    ],
)
def test_what_can_not_be_meant_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(InvalidConfig, match=reason):
        parse_config(text.encode())
