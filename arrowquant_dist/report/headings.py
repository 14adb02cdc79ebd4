"""What the datasets of a comparison are called: a letter on pictures, and their names without the common folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arrowquant_dist.report.reported import Reported


@dataclass(frozen=True, slots=True)
class Heading:
    """What a dataset is called. letter: its letter on pictures. name: its full name. short: its name without the folder
    that all datasets of the comparison share."""

    letter: str
    name: str
    short: str


def headings(datasets: Sequence[Reported]) -> tuple[Heading, ...]:
    """A heading for each dataset, in their order, with the letters A, B, … Z, AA, AB …"""
    names = [one.name for one in datasets]
    folder = common_folder(names)
    return tuple(
        Heading(_letter(index), name, name.removeprefix(folder).strip("/") or name)
        for index, name in enumerate(names)
    )


def common_folder(names: Sequence[str]) -> str:
    """The folder that all names begin with, including its last slash; empty if there is none."""
    parts = [name.split("/") for name in names]
    shared = 0
    while all(len(own) > shared + 1 and own[shared] == parts[0][shared] for own in parts):
        shared += 1
    return "/".join(parts[0][:shared]) + "/" if shared else ""


def _letter(index: int) -> str:
    before, last = divmod(index, 26)
    return (_letter(before - 1) if before else "") + chr(ord("A") + last)
