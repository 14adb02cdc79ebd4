"""Converts a plan to the bytes that its target has, and back."""

from __future__ import annotations

from arrowquant_dist.plan import Plan, plan_from_table, plan_table
from arrowquant_dist.target.layout import PLAN_PATH
from arrowquant_dist.target.plan_file import plan_file, read_plan_file, with_run_id


def written(plan: Plan) -> bytes:
    """The bytes of the plan as `run/plan.arrow` of a run."""
    return plan_file(with_run_id(plan_table(plan), b'"run"'))


def read_again(data: bytes) -> Plan:
    """The plan that a later run reads from the bytes of `written`."""
    return plan_from_table(read_plan_file(data, PLAN_PATH))
