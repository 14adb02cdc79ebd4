"""Reads reports that older releases wrote.

Each step turns the values of one version into those of the next. What an older release did not measure stays unknown:
nothing is made up for it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from arrowquant_dist.errors import InvalidCheckpoint

REPORT_VERSION = 2


def upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a report of any version so far, as those of REPORT_VERSION.

    Raises InvalidCheckpoint for a newer version and for what is not a version, and KeyError, TypeError or
    AttributeError for values that no release wrote.
    """
    version = values.get("report_version")
    if type(version) is not int or version < 1:
        raise InvalidCheckpoint(
            f"report_version is {reprlib.repr(version)}, which no release writes; fetch the report again"
        )
    if version > REPORT_VERSION:
        message = (
            f"report_version is {version}, this release reads up to {REPORT_VERSION}; update arrowquant-dist"
        )
        raise InvalidCheckpoint(message)
    upgraded = dict(values)
    for step in _STEPS[version - 1 :]:
        upgraded = step(upgraded)
    return upgraded


def _to_2(values: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had the names of the nodes, and no figures of who did what; its phases were not timed."""
    run = dict(values["run"])
    del run["nodes"]
    return {**values, "run": run, "work": None}


_STEPS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (_to_2,)
