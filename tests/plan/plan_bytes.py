"""A plan as its target has it, and back."""

from __future__ import annotations

from arrowquant_dist.plan import Plan, plan_from_table, plan_table
from arrowquant_dist.target.layout import PLAN_PATH
from arrowquant_dist.target.plan_file import plan_file, read_plan_file, with_run_id


def written(plan: Plan) -> bytes:
    """The plan as `run/plan.arrow` of a run."""
    return plan_file(with_run_id(plan_table(plan), b'"run"'))


def read_again(data: bytes) -> Plan:
    """What `written` gave, as a later run reads it."""
    return plan_from_table(read_plan_file(data, PLAN_PATH))
