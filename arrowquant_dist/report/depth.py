"""What the name of a layer tells about its place in the model: the number of its block, and its role there."""

from __future__ import annotations

import re

from arrowquant_dist.config.patterns import OF_A_BLOCK, starred

_BLOCK = re.compile(rf"{OF_A_BLOCK}(\d{{1,6}})(?=[./_]|$)", re.IGNORECASE)
_NUMBER = re.compile(r"(?:^|(?<=[./]))(\d{1,6})(?=[./]|$)")


def depth(name: str) -> int | None:
    """The number of a layer's block, such as 12 for `model.layers.12.mlp.up_proj.weight`; None outside of blocks."""
    found = _BLOCK.search(name) or _NUMBER.search(name)
    return int(found[1]) if found is not None else None


def role(name: str) -> str:
    """The role of a layer in its block: its name with stars in place of the numbers of blocks."""
    return starred(name)


def short_role(name: str) -> str:
    """The part of a role after its last star, without `.weight`: `attention.self.query`. A role without a star loses
    only its `.weight`."""
    tail = name.rsplit("*.", 1)[-1] if "*." in name else name
    return tail.removesuffix(".weight")
