"""What is kept of each model family besides its vectors, by the names in its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from arrowquant_dist.config import LayerOverride, QuantizationConfig, RunConfig, SpecResolver, resolve_layer
from arrowquant_dist.config.families import Families
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.plan import make_plan, summarize
from tests.config.model_names import KEPT, QUANTIZED, ROUTER, Shape
from tests.plan.plan_sources import checkpoint

INT8, RUN = QuantizationConfig(), RunConfig()


@dataclass(frozen=True)
class Named:
    name: str
    shape: Shape


def shapes_of(family: str) -> dict[str, Shape]:
    kept = {name: shape for name, (shape, _) in KEPT.get(family, {}).items()}
    return {**QUANTIZED.get(family, {}), **kept}


def reasons(shapes: dict[str, Shape], config: QuantizationConfig = INT8) -> dict[str, str]:
    plan = make_plan(checkpoint(shapes), config, RUN)
    return {block.layer.name: block.kept_reason for block in plan.blocks if block.kept_reason is not None}


@pytest.mark.parametrize("family", sorted({*KEPT, *QUANTIZED}))
def test_what_is_kept_of_a_family_is_what_no_activation_is_multiplied_with(family: str) -> None:
    assert reasons(shapes_of(family)) == {name: reason for name, (_, reason) in KEPT.get(family, {}).items()}


@pytest.mark.parametrize("family", KEPT)
def test_it_is_the_same_in_any_order_and_below_any_prefix(family: str) -> None:
    shapes = {f"model.{name}": shape for name, shape in reversed(shapes_of(family).items())}
    assert reasons(shapes) == {f"model.{name}": reason for name, (_, reason) in KEPT[family].items()}


def test_what_is_kept_is_stored_byte_for_byte_and_named_in_the_plan() -> None:
    shapes = shapes_of("jamba")
    for config in (INT8, QuantizationConfig("fp16"), QuantizationConfig(mixed_precision_layers=["layers"])):
        summary = summarize(make_plan(checkpoint(shapes), config, RUN), "out", RUN)
        named = {layer.layer_name: (layer.quant_type, layer.reason) for layer in summary.kept_matrices}
        assert (
            named.items() >= {name: ("none", reason) for name, (_, reason) in KEPT["jamba"].items()}.items()
        )


def test_a_layer_of_its_own_shows_no_experts_beside_it_but_what_its_name_says() -> None:
    gate, router = "model.layers.0.mlp.gate.weight", "model.layers.0.block_sparse_moe.gate.weight"
    assert resolve_layer(INT8, gate, (8, 64), "float32").kept_reason is None
    assert resolve_layer(INT8, router, (8, 64), "float32").kept_reason == ROUTER
    assert resolve_layer(INT8, "mixer.A_log", (64, 16), "float32").kept_reason == "state-space parameter"


@pytest.mark.parametrize("pattern", ["*A_log", "A_log", "layers.0", "*"])
def test_an_override_that_says_a_quant_type_quantizes_it_and_is_noted(pattern: str) -> None:
    shapes = {"layers.0.mixer.A_log": (64, 16), "layers.0.mixer.in_proj.weight": (64, 16)}
    config = QuantizationConfig(overrides=[LayerOverride(pattern, "int4", group_size=16)])
    plan = make_plan(checkpoint(shapes), config, RUN)
    specs = {block.layer.name: block.spec.quant_type for block in plan.blocks}
    assert specs["layers.0.mixer.A_log"] == "int4"
    assert plan.notes == (
        f"overrides[0] ({pattern!r}) quantizes 1 of the layers that are kept by default, such as "
        "layers.0.mixer.A_log (state-space parameter)",
    )


def test_an_override_that_asks_for_fp16_has_it_in_16_bits() -> None:
    config = QuantizationConfig(overrides=[LayerOverride("*A_log", "fp16")])
    resolved = resolve_layer(config, "mixer.A_log", (64, 16), "float32")
    assert (resolved.spec.quant_type, resolved.kept_reason) == ("fp16", "override: *A_log")


def test_an_override_that_says_anything_else_has_no_effect_and_that_is_noted() -> None:
    config = QuantizationConfig(overrides=[LayerOverride("*A_log", group_size=16)])
    plan = make_plan(checkpoint({"mixer.A_log": (64, 16)}), config, RUN)
    assert [block.kept_reason for block in plan.blocks] == ["state-space parameter"]
    assert any("overrides[0] ('*A_log') has no effect" in note for note in plan.notes)


@pytest.mark.parametrize("shape", [(1, 64), (64, 1), (1, 1, 64), (1, 64, 1), (64, 1, 1), (1, 1)])
def test_vectors_of_more_dimensions_are_kept_unless_an_override_says_a_quant_type(shape: Shape) -> None:
    kept = resolve_layer(INT8, "x", shape, "float32")
    assert (kept.spec.quant_type, kept.kept_reason) == ("none", f"vector ({len(shape)}-D)")
    asked = QuantizationConfig(overrides=[LayerOverride("x", "int8")])
    assert resolve_layer(asked, "x", shape, "float32").spec.quant_type == "int8"
    make_plan(checkpoint({"x": shape}), asked, RUN)


@pytest.mark.parametrize("shape", [(), (64,)])
def test_of_fewer_dimensions_no_override_quantizes_them(shape: Shape) -> None:
    asked = QuantizationConfig(overrides=[LayerOverride("x", "int8")])
    assert resolve_layer(asked, "x", shape, "float32").spec.quant_type == "none"
    with pytest.raises(InvalidConfig, match="can't be quantized"):
        make_plan(checkpoint({"x": shape}), asked, RUN)


def test_names_are_looked_through_once_and_only_where_one_may_be_a_router() -> None:
    class Watched(list[Named]):
        passes = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            Watched.passes += 1
            return super().__iter__()

    layers = Watched(Named(f"layers.{i}.mlp.experts.0.up.weight", (16, 64)) for i in range(50))
    families = Families(layers)
    assert all(families.why(layer.name, layer.shape) is None for layer in list(layers))
    Watched.passes = 0
    assert families.why("layers.0.mlp.up.weight", (16, 64)) is None
    assert Watched.passes == 0
    for i in range(50):
        assert families.why(f"layers.{i}.mlp.gate.weight", (8, 64)) == ROUTER
    assert Watched.passes == 1


def test_equal_layers_share_one_spec() -> None:
    resolver = SpecResolver(INT8)
    specs = {id(resolver.resolve(f"{i}.mixer.A_log", (64, 16), "float32").spec) for i in range(100)}
    assert len(specs) == 1
