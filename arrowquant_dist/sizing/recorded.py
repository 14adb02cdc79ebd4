"""The table by which a sequential calibration quantized, if it was made for the size that is asked for.

The layers that run after a layer make up for the errors of its codes: for the very errors on the calibration's
quantized path. Codes in slightly different steps have other errors, to which the corrections of the first are added.
MiniLM's embedding cosine at 5.5 MB is .913 with the calibration's own steps, and .907 with others of that size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arrowquant_dist.config import QuantizationConfig, QuantSpec, SpecResolver, recorded_config
from arrowquant_dist.config.size import size_limit
from arrowquant_dist.methods import side_input_of
from arrowquant_dist.plan import Plan, SideInputs
from arrowquant_dist.sizing.table import FOUND


@dataclass(frozen=True, slots=True)
class RecordedTable:
    """specs: {layer: spec}. order: names of the layers in the order in which they run."""

    specs: Mapping[str, QuantSpec]
    order: tuple[str, ...]


def recorded_table(
    plan: Plan, config: QuantizationConfig, target: int, side_inputs: SideInputs
) -> RecordedTable | None:
    """The table; None where the calibration was for no size or another one, or by another config. plan, config, target:
    as for choose_calibrated_size. Raises InvalidConfig for a record that was changed."""
    side_input = side_input_of("gptq")
    side = side_inputs.get(side_input.config_field) if side_input is not None else None
    values = side.record if side is not None else {}
    by = values.get("config")
    params = sum(block.num_params for block in plan.blocks)
    if not isinstance(by, Mapping) or not _is_for(by, config, target, params):
        return None
    layers = [*{block.layer.name: block.layer for block in plan.blocks}.values()]
    by = {**by, "hessians": config.hessians}  # a record does not say where it is
    resolver = SpecResolver(recorded_config(by), layers)
    specs = {layer.name: resolver.resolve(layer.name, layer.shape, layer.dtype).spec for layer in layers}
    return RecordedTable(specs, tuple(str(layer["name"]) for layer in values["layers"]))


def _is_for(by: Mapping[str, Any], config: QuantizationConfig, target: int, params: int) -> bool:
    asked = by.get("chosen_for")
    if not isinstance(asked, Mapping) or asked.get("size") is None:
        return False
    if size_limit(asked["size"]).nbytes_of(params) != target:
        return False
    beside = {"size", "hessians", FOUND}
    given = config.to_dict()
    return {k: v for k, v in asked.items() if k not in beside} == {
        k: v for k, v in given.items() if k not in beside
    }
