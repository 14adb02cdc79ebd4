"""What a run ends with."""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_dist.reduce import Report


@dataclass(frozen=True, slots=True)
class Outcome:
    """already_finished: the target was complete before; `report` is that of the run that completed it. damaged: paths
    under the target of what `repair` has found and made again; None where nobody looked."""

    report: Report
    already_finished: bool
    target: str
    damaged: tuple[str, ...] | None = None
