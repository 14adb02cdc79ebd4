"""Determines how finely to quantize each layer of a model relative to the others, by what its errors do to texts.

Each weight of a block is rounded alone, and the block's output for some texts is compared with what it was: in MiniLM,
an equal error changes ten times as much in a value layer as in a query layer, and ten times as much in the last block
as in the first. Blocks are processed one by one, with one block's weights in memory. The resulting order of the layers
is that of the model's own result (with a correlation of .9 between the logarithms).

If d is the change by rounding with a fixed step, per value of a layer, the total change at a given number of bits is
smallest when steps are proportional to d^(-1/2) (reverse water-filling). Here their logarithms differ half as much: the
damage of a coarse step grows faster than its square. For MiniLM at 8.6 MB, by 400 texts, embedding cosine is .9844 with
equal steps, .9857 with these and .9849 with the full difference; data-free at 7.9 MB it is .946, .959 and .961.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from arrowquant_dist.models.chain import Chain, Inputs
from arrowquant_dist.models.paths import Paths
from arrowquant_dist.models.subject import Subject
from arrowquant_dist.models.tokens import TokenizedTexts
from arrowquant_dist.models.traced import sources_of

_TOKENS = 4096  # approximate number of tokens to look at
_STEP = 0.3  # relative to a row's root mean square
_SHARE = 0.5  # of the difference in logarithm that reverse water-filling asks for
_ROWS = 256  # rows that are rounded at a time
_DIGITS = 2  # significant digits of the result, so that sums in another order give the same


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """One batch at a part. inputs: the model's inputs. hidden: the part's input; None for the first part. made: what
    the part makes of it."""

    inputs: Inputs
    hidden: torch.Tensor | None
    made: torch.Tensor


def weighed_steps(subject: Subject, tokens: TokenizedTexts) -> dict[str, float]:
    """Returns {stored name: the layer's step as a multiple of the mean one} for matrices in the model's blocks whose
    errors have an effect; empty for a model that is not a chain of blocks.

    tokens: those of the texts for calibration, some of which are looked at. Raises what reading raises, and
    InvalidConfig for blocks that cannot be run alone.
    """
    every = max(1, -(-sum(tokens.lengths) // _TOKENS))
    some = tokens.only([index for index, length in enumerate(tokens.lengths) if length][::every])
    paths = Paths(subject, some, is_sequential=False)
    chain, changes = paths.original, {}
    inputs = [paths.inputs(batch) for batch in range(len(paths.batches))]
    hidden: Sequence[torch.Tensor | None] = [None] * len(inputs)
    for part in range(paths.parts - 1):
        paths.enter(part)
        made = [_made(chain, part, *each) for each in zip(inputs, hidden, strict=True)]
        batches, total = [*map(_Batch, inputs, hidden, made)], sum(map(_squares, made))
        for index in chain.slots_of(part) if part and total > 0.0 else ():
            if chain.slots[index].tensor.dim() > 1:
                changes[index] = _change(chain, part, chain.slots[index].tensor, batches) / total
        hidden = made
    return _steps(chain, changes)


def _made(chain: Chain, part: int, inputs: Inputs, hidden: torch.Tensor | None) -> torch.Tensor:
    return cast("torch.Tensor", chain.run(part, inputs, hidden))  # only the last part returns nothing


def _squares(values: torch.Tensor) -> float:
    return float(values.double().square().sum())


def _change(chain: Chain, part: int, weight: torch.Tensor, batches: Sequence[_Batch]) -> float:
    """Returns Σ|ŷ - y|² over what the part makes when this one of its weights is rounded. Takes as much memory as this
    weight in addition to the part's weights, like the second path of a calibration."""
    before = weight.clone()
    with torch.no_grad():
        _round(weight)
        changed = sum(_squares(_made(chain, part, own.inputs, own.hidden) - own.made) for own in batches)
        weight.copy_(before)
    return changed


def _round(weight: torch.Tensor) -> None:
    """Rounds in place: each row in steps of _STEP times its root mean square."""
    for rows in torch.split(weight.view(-1, weight.shape[-1]), _ROWS):
        step = _STEP * rows.square().mean(-1, keepdim=True).sqrt()
        rows.copy_(torch.where(step > 0.0, torch.round(rows / step) * step, rows))


def _steps(chain: Chain, changes: Mapping[int, float]) -> dict[str, float]:
    """Returns steps whose logarithms have mean 0 over all values. changes: by slot."""
    sizes = {index: chain.slots[index].tensor.numel() for index, change in changes.items() if change > 0.0}
    logs = {index: math.log(changes[index] / size) for index, size in sizes.items()}
    mean = sum(size * logs[index] for index, size in sizes.items()) / max(1, sum(sizes.values()))
    return {
        name: float(f"{math.exp((mean - log) * _SHARE / 2):.{_DIGITS}g}")
        for index, log in logs.items()
        for name in sources_of(chain.slots[index].traced.node)
    }
