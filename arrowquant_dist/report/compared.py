"""The datasets of a comparison, and what its tables and pictures need to know about all of them, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from arrowquant_dist.report.headings import Heading, headings
from arrowquant_dist.report.reported import Reported
from arrowquant_dist.report.shared_error import shared_sqnr
from arrowquant_dist.report.unlike import unlike


@dataclass(frozen=True)
class Compared:
    """Datasets to show side by side, in their order; at least one."""

    datasets: Sequence[Reported]

    @cached_property
    def headings(self) -> tuple[Heading, ...]:
        """What each dataset is called."""
        return headings(self.datasets)

    @cached_property
    def unlike(self) -> tuple[str, ...]:
        """Sentences that say which datasets were not made from the same model; empty if all were."""
        return unlike(self.datasets)

    @cached_property
    def shared_sqnr(self) -> tuple[float | None, ...]:
        """The SQNR of each dataset over all layers that at least one of them quantizes."""
        return tuple(shared_sqnr(self.datasets))
