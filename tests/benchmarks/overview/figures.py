"""The parts of an overview, as values that survive a round trip through JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

VERSION = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure of each round, in the order of the rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def over(self, other: Measured) -> Measured:
        """Ratios round by round, so that each is of the same minute."""
        return Measured(tuple(mine / its for mine, its in zip(self.values, other.values, strict=True)))

    @classmethod
    def of(cls, amount: float, seconds: list[float]) -> Measured:
        """Rates: `amount` divided by the seconds of each round."""
        return cls(tuple(amount / taken for taken in seconds))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same work done by this program and by a peer, as rates: more is better. missing: why `theirs` is None."""

    part: str
    name: str
    unit: str
    ours: Measured
    peer: str
    theirs: Measured | None
    missing: str = ""

    @property
    def ratio(self) -> Measured | None:
        return None if self.theirs is None else self.ours.over(self.theirs)


@dataclass(frozen=True, slots=True)
class Spot:
    """One way to store MiniLM: its bytes, and the mean cosine of its sentence embeddings to the original's.

    maker: `ours`, `ours, N texts` if it was calibrated with that many, or the peer.
    """

    maker: str
    name: str
    nbytes: int
    cosine: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One figure over another. points: pairs of the value that was set and of what was measured."""

    title: str
    across: str
    unit: str
    points: tuple[tuple[float, Measured], ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything that was measured. machine: description of the machine. versions: versions of the peers."""

    date: str
    machine: str
    rounds: int
    params: int
    versions: Mapping[str, str]
    comparisons: tuple[Comparison, ...]
    spots: tuple[Spot, ...]
    curves: tuple[Curve, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"overview_version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Overview:
        """Reads what `to_dict` gave. Raises ValueError for another version."""
        if values.get("overview_version") != VERSION:
            raise ValueError(f"overview_version {values.get('overview_version')!r}, not {VERSION}")
        return cls(
            values["date"],
            values["machine"],
            values["rounds"],
            values["params"],
            values["versions"],
            tuple(_comparison(row) for row in values["comparisons"]),
            tuple(Spot(**row) for row in values["spots"]),
            tuple(_curve(row) for row in values["curves"]),
        )


def _comparison(row: Mapping[str, Any]) -> Comparison:
    theirs = row["theirs"]
    return Comparison(
        row["part"],
        row["name"],
        row["unit"],
        _measured(row["ours"]),
        row["peer"],
        None if theirs is None else _measured(theirs),
        row["missing"],
    )


def _curve(row: Mapping[str, Any]) -> Curve:
    points = tuple((at, _measured(found)) for at, found in row["points"])
    return Curve(row["title"], row["across"], row["unit"], points)


def _measured(found: Mapping[str, Any]) -> Measured:
    return Measured(tuple(found["values"]))
