"""Configs that ask for a size or a quality instead of saying how layers are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arrowquant_dist.config.checks import invalid

ASKING = ("size", "min_quality")
WITHOUT_HESSIANS = "does not use hessians; leave one of them out, or use size with hessians"
# Settings that are chosen, and so must not be given, in a config that asks for a size or a quality.
CHOSEN = (
    *("quant_type", "per_channel", "group_size", "symmetric", "method", "integer_zero_points", "scale_dtype"),
    *("keep_codes", "step", "row_exponent", "rate"),
)


def refuse_chosen(asked: str, said: Mapping[str, Any]) -> None:
    """Raises InvalidConfig where `said` has a setting that is chosen for `asked`."""
    for name in CHOSEN:
        if name in said:
            reason = (
                "chooses how layers are stored; leave one of them out (overrides may set it for some layers)"
            )
            raise invalid(name, f"cannot be combined with {asked}, which {reason}")
