"""Where in a model a layer stands, as its name tells: how deep, and what it does there."""

from __future__ import annotations

import re

from arrowquant_dist.config.patterns import OF_A_BLOCK, starred

_BLOCK = re.compile(rf"{OF_A_BLOCK}(\d{{1,6}})(?=[./_]|$)", re.IGNORECASE)
_NUMBER = re.compile(r"(?:^|(?<=[./]))(\d{1,6})(?=[./]|$)")


def depth(name: str) -> int | None:
    """The block's number, such as 12 of `model.layers.12.mlp.up_proj.weight`; None outside of blocks."""
    found = _BLOCK.search(name) or _NUMBER.search(name)
    return int(found[1]) if found is not None else None


def role(name: str) -> str:
    """What a layer does in its block: the name without the block's number."""
    return starred(name)


def short_role(name: str) -> str:
    """What is after the block's number, without `.weight`: `attention.self.query`; the whole where there is none."""
    tail = name.rsplit("*.", 1)[-1] if "*." in name else name
    return tail.removesuffix(".weight")
