"""Makes shards from layer table and config: which rows of which layers each worker turns into a part, and how."""

from arrowquant_dist.plan.blocks import PLAN_VERSION, Plan, RowBlock, Shard
from arrowquant_dist.plan.differences import differences, is_same_work
from arrowquant_dist.plan.layers import (
    AlikeLayers,
    PlannedLayer,
    StoredSizes,
    alike_layers,
    too_wide_notes,
)
from arrowquant_dist.plan.make import make_plan
from arrowquant_dist.plan.memory import worker_memory_nbytes
from arrowquant_dist.plan.side_inputs import (
    SideInputs,
    SideTensors,
    open_side_inputs,
    refuse_other_weights,
    used_side_inputs,
)
from arrowquant_dist.plan.sizes import expected_nbytes
from arrowquant_dist.plan.summary import PlanSummary, ShardsThere, TypeTotals, UnquantizedLayer, summarize
from arrowquant_dist.plan.table import plan_from_table, plan_table

__all__ = [
    "PLAN_VERSION",
    "AlikeLayers",
    "Plan",
    "PlanSummary",
    "PlannedLayer",
    "RowBlock",
    "Shard",
    "ShardsThere",
    "SideInputs",
    "SideTensors",
    "StoredSizes",
    "TypeTotals",
    "UnquantizedLayer",
    "alike_layers",
    "differences",
    "expected_nbytes",
    "is_same_work",
    "make_plan",
    "open_side_inputs",
    "plan_from_table",
    "plan_table",
    "refuse_other_weights",
    "summarize",
    "too_wide_notes",
    "used_side_inputs",
    "worker_memory_nbytes",
]
