"""The documents that people read first, README and the guides, and the fenced blocks in them."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.conftest import CHECKOUT

GUIDES = (
    "README.md",
    "configs/README.md",
    "arrowquant_dist/report/README.md",
    "arrowquant_dist/export/README.md",
    "arrowquant_dist/cli/README.md",
    "cluster/README.md",
    "cluster/sizing.md",
)
TEXTS = {guide: (CHECKOUT / guide).read_text() for guide in GUIDES}


class Block(NamedTuple):
    """A fenced block. language: "" for commands, and for blocks that are neither code nor output."""

    guide: str
    language: str
    text: str

    @property
    def first(self) -> str:
        return self.text.splitlines()[0]


BLOCKS = [
    Block(guide, language, text)
    for guide, page in TEXTS.items()
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
]


def section(guide: str, heading: str) -> str:
    return TEXTS[guide].split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
