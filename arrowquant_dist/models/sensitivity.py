"""Measures how what a model makes of texts depends on rows of its embeddings: E[g gᵀ], with g the gradient of a result.

Results are random sums of the output of the first blocks over every token, so that this is the mean of what errors in a
row do to that output (methods/sensitive.py). Blocks are run forwards and then backwards with the weights of one in
memory, and their inputs are kept for some of the texts at a time; looking at only the first blocks limits the cost for
deep models. With MiniLM's embedding alone, embedding cosine falls short by .0063; six blocks make up .0016 of that, as
much as the gradients of the embeddings themselves do, four .0012, two .0010. Noise costs more: for 384 columns, 1,500
tokens make up .0009, 3,700 .0016 and 8,400 .0019.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from arrowquant_dist.errors import counted
from arrowquant_dist.models.chain import Chain, Inputs
from arrowquant_dist.models.checkpoint import CheckpointLoads
from arrowquant_dist.models.paths import Paths
from arrowquant_dist.models.subject import Subject, batches_of_one_length
from arrowquant_dist.models.tokens import TokenizedTexts
from arrowquant_dist.models.watch import Seen, Site, Watch

_A_COLUMN = 16  # approximate number of tokens to look at for each column
_LEAST_A_COLUMN = 4  # with fewer, it is mostly noise and useless
_GROUP = (
    4096  # most tokens that go through all blocks together; what is kept of them takes a share of the budget
)
_SHARE = 4
_TOGETHER = 512  # tokens that go through a block together: what torch keeps to go backwards grows with this
_BLOCKS = 6
_SEED = 20261


def row_sensitivities(subject: Subject, tokens: TokenizedTexts) -> dict[str, np.ndarray]:
    """Returns {stored name of an embedding: float32 [columns, columns]}. There is none if `why_without` gives a reason,
    for an embedding that is not a layer by itself, if torch cannot differentiate the blocks, and if the result is not
    finite.

    tokens: of the texts for calibration. Raises what reading raises, and InvalidConfig for blocks that cannot be run
    alone.
    """
    source: CheckpointLoads = subject.opened.source  # type: ignore[assignment]
    room = source.budget.limit_nbytes // _SHARE
    paths = Paths(subject, tokens, is_sequential=False)
    chain = paths.original
    if why_without(chain, tokens) is not None:
        return {}
    width = _width(chain)
    together = min(_GROUP, room // (_BLOCKS * chain.hidden_nbytes))
    sums: dict[Site, torch.Tensor] = {}
    count = 0
    generator = torch.Generator().manual_seed(_SEED)
    try:
        for group in _groups(tokens, _A_COLUMN * width, together):
            gradients = _gradients(paths, group, generator)
            paths.enter(0)
            for inputs, gradient in zip(group, gradients, strict=True):
                count += inputs["input_ids"].numel()
                for site, squares in _squares(chain, inputs, gradient).items():
                    sums[site] = sums[site] + squares if site in sums else squares
    except _NoGradient:
        return {}
    return {
        owner.layer: (squares / count).float().numpy()
        for site, squares in sums.items()
        for owner in paths.owners(site)
        if paths.layers[owner.layer].shape == chain.slots[site.slot].tensor.shape
        and bool(squares.float().isfinite().all())
    }


def why_without(chain: Chain, tokens: TokenizedTexts) -> str | None:
    """Returns why no sensitivities are computed for a model and such texts, or None if they are."""
    width, size = _width(chain), sum(tokens.lengths)
    if width == 0:
        return "its blocks do not form a chain"
    if size < _LEAST_A_COLUMN * width:
        least = _LEAST_A_COLUMN * width
        return (
            f"the texts have {counted(size, 'token')}, but {counted(width, 'column')} need at least {least}"
        )
    return None


def _width(chain: Chain) -> int:
    """Returns the width of the hidden states between blocks; 0 if the blocks are not a chain."""
    return chain.hidden_nbytes // 4


def _groups(tokens: TokenizedTexts, wanted: int, together: int) -> Iterator[list[Inputs]]:
    """Yields groups of batches of one length, with about `wanted` tokens from texts spread over all. Batches and their
    order do not depend on `together`, the most tokens in a group."""
    lengths = tokens.lengths
    every = max(1, sum(lengths) // wanted)
    some = [index for index, length in enumerate(lengths) if length][::every]
    group: list[Inputs] = []
    size = 0
    for batch in batches_of_one_length([lengths[index] for index in some]):
        length = lengths[some[batch[0]]]
        most = max(1, _TOGETHER // length)
        for start in range(0, len(batch), most):
            texts = [some[index] for index in batch[start : start + most]]
            if group and size + length * len(texts) > together:
                yield group
                group, size = [], 0
            group.append(tokens.inputs(texts))
            size += length * len(texts)
    if group:
        yield group


def _gradients(paths: Paths, batches: Sequence[Inputs], generator: torch.Generator) -> list[torch.Tensor]:
    """Returns the gradients of the results with respect to the input of the first block, for each batch."""
    chain, last = paths.original, min(_BLOCKS, paths.parts - 2)
    states: list[list[torch.Tensor]] = []
    for part in range(last):
        paths.enter(part)
        hidden = states[-1] if states else [None] * len(batches)
        states.append([_made(chain.run(part, *each)) for each in zip(batches, hidden, strict=True)])
    gradients = [torch.randn(state.shape, generator=generator) for state in states[0]]
    for part in range(last, 0, -1):
        paths.enter(part)
        gradients = [
            _through(chain, part, *each) for each in zip(batches, states.pop(), gradients, strict=True)
        ]
    return gradients


def _made(hidden: torch.Tensor | None) -> torch.Tensor:
    return cast("torch.Tensor", hidden)  # only the last part returns nothing


def _through(
    chain: Chain, part: int, inputs: Inputs, hidden: torch.Tensor, gradient: torch.Tensor
) -> torch.Tensor:
    """Returns the gradient with respect to `hidden`. gradient: that with respect to what the block makes of it."""
    hidden.requires_grad_()
    made = _made(chain.run_for_gradients(part, inputs, hidden))
    (found,) = _gradients_of(made, [hidden], gradient)
    return torch.zeros_like(hidden) if found is None else found


class _NoGradient(Exception):
    """Raised where torch cannot differentiate. It never leaves this module."""


def _gradients_of(
    made: torch.Tensor, given: Sequence[torch.Tensor], gradient: torch.Tensor
) -> Sequence[torch.Tensor | None]:
    """Returns the gradient with respect to each of `given`; None where `made` does not depend on it."""
    try:
        return torch.autograd.grad(made, given, gradient, allow_unused=True)
    except RuntimeError as error:  # `made` was computed without gradients, or changed in place on the way
        raise _NoGradient from error


def _squares(chain: Chain, inputs: Inputs, gradient: torch.Tensor) -> dict[Site, torch.Tensor]:
    """Returns Σ g gᵀ, float64, for each embedding, over the rows that the batch looks up. gradient: with respect to the
    input of the first block."""
    looked_up = _LookedUp()
    with chain.watched(0, looked_up.watch):
        made = _made(chain.run_for_gradients(0, inputs, None))
    found: defaultdict[Site, list[torch.Tensor]] = defaultdict(list)
    rows = [row for _, row in looked_up.found]
    own_gradients = _gradients_of(made, rows, gradient) if rows else ()
    for (site, _), own in zip(looked_up.found, own_gradients, strict=True):
        if own is not None:
            found[site].append(own.reshape(-1, own.shape[-1]))
    return {site: _summed(each) for site, each in found.items()}


def _summed(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    return sum((one.T @ one).double() for one in gradients)  # type: ignore[return-value]


class _LookedUp:
    """Collects lookups. found: pairs of the embedding's site and the looked-up rows, to differentiate by."""

    def __init__(self) -> None:
        self.found: list[tuple[Site, torch.Tensor]] = []
        self._row: torch.Tensor | None = None

    def watch(self, memory: Mapping[int, int]) -> Watch:
        return Watch(memory, self._note, decides=self._decide)

    def _decide(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Any:  # noqa: ARG002 - as Decides has it
        """Returns a copy of the rows, which may be changed in place. See Decides."""
        if name != "embedding":
            return result
        self._row = result.detach().requires_grad_()
        return self._row.clone()

    def _note(self, seen: Seen) -> None:
        if seen.site.use == "embedding" and self._row is not None:
            self.found.append((seen.site, self._row))
