"""The tables that a validation of int8 and int2 has, and what is in them."""

from __future__ import annotations

import re

TABLES = (
    "Summary",
    "Environment",
    "Model",
    "Sizes",
    "Theoretical against actual, all against fp16",
    "Cosine of the weights, over quantized layers",
    "By layer type",
    "Distribution of the cosine, int8",
    "Distribution of the cosine, int2",
    "Outputs against the original's",
    "Checks",
    "Quantization by phase",
    "Loading",
    "Memory of a process, for the weights",
    "Criteria by category",
    "Criteria",
)


def rows(markdown: str, title: str, named_by: int = 1) -> dict[str, list[str]]:
    """{first cells: the others} of the table under a title."""
    table = re.search(rf"^##+ {re.escape(title)}\n+((?:\|.*\n)+)", markdown, re.MULTILINE)
    assert table is not None, title
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table[1].splitlines()[2:]]
    return {" ".join(line[:named_by]): line[named_by:] for line in lines}
