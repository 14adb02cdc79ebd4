"""Texts in batches, and the original's outputs for them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from arrowquant_dist.distillation.losses import WHOLE, BatchShares
from arrowquant_dist.distillation.recombining import Recombining
from arrowquant_dist.models.outputs import Outputs, Reader
from arrowquant_dist.models.tokens import TokenizedTexts, batches
from arrowquant_dist.storage.temporary import reserve

_HELD_BACK = 10  # one text of so many is held back
_MOST_HELD_BACK = 200


def held_back(count: int) -> tuple[list[int], list[int]]:
    """Numbers of the texts to train with, and of the texts to judge by: the sixth of each ten, at most 200 of them,
    evenly spread."""
    every = [index for index in range(count) if index % _HELD_BACK == _HELD_BACK // 2]
    step = max(1, -(-len(every) // _MOST_HELD_BACK))
    judged = every[::step]
    held = {*judged}
    return [index for index in range(count) if index not in held], judged


@dataclass(frozen=True, slots=True)
class Lesson:
    """Inputs for the student, the outputs it should have, and the part of the batch that these are."""

    inputs: Mapping[str, torch.Tensor]
    outputs: Outputs
    shares: BatchShares = WHOLE


@dataclass(frozen=True, slots=True)
class BatchSlice:
    """Which texts of each batch: every count-th, beginning with the one at index `number`."""

    number: int = 0
    count: int = 1


ALL_TEXTS = BatchSlice()


class LessonsOfTexts:
    """Batches of texts of similar length, of which each worker has a slice."""

    def __init__(
        self, reader: Reader, texts: TokenizedTexts, batch_tokens: int, of_batches: BatchSlice = ALL_TEXTS
    ) -> None:
        """of_batches: the part of each batch that lessons are made of."""
        self._reader, self._texts = reader, texts
        self._lengths = texts.lengths
        self._batches = [*batches(self._lengths, batch_tokens)]
        self._slice = of_batches

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._batches)

    def tokens(self, batch: int) -> int:
        """Number of tokens in the whole batch."""
        return sum(self._lengths[text] for text in self._batches[batch])

    def _own(self, batch: int) -> list[int]:
        """The texts of the slice; empty where the batch has fewer texts than slices, and so none for this one."""
        return self._batches[batch][self._slice.number :: self._slice.count]

    def _inputs(self, batch: int, own: TokenizedTexts) -> dict[str, torch.Tensor]:
        """own: the texts of the slice, or others with as many tokens."""
        longest = self._lengths[self._batches[batch][0]]
        # Padding is looked up, too: all slices have the length that the whole batch would be padded to.
        return own.inputs(range(len(own.ids)), longest)

    def _shares(self, batch: int) -> BatchShares:
        texts, every = self._own(batch), self._batches[batch]
        tokens, of_tokens = (sum(self._lengths[text] for text in found) for found in (texts, every))
        if not self._reader.is_causal:
            return BatchShares(tokens / of_tokens, len(texts) / len(every))
        return BatchShares(tokens / of_tokens, (tokens - len(texts)) / max(of_tokens - len(every), 1))

    def _outputs(self, inputs: Mapping[str, torch.Tensor]) -> Outputs:
        with torch.no_grad():
            return self._reader.run(inputs)


class Teacher(LessonsOfTexts):
    """A lesson for each step, from the texts to learn from. Each epoch has all batches once, in an order of its own.
    The first epoch has the texts as they are, later ones have texts made of them (recombining.py)."""

    def __init__(
        self,
        reader: Reader,
        texts: TokenizedTexts,
        batch_tokens: int,
        seed: int,
        of_batches: BatchSlice = ALL_TEXTS,
    ) -> None:
        super().__init__(reader, texts, batch_tokens, of_batches)
        self._recombining, self._seed = Recombining(texts, seed), seed

    def lesson(self, step: int) -> Lesson | None:
        """The slice's lesson; None where the slice has no text of the step."""
        epoch, place = divmod(step, len(self))
        batch = _shuffled(epoch, len(self), self._seed)[place]
        own = self._own(batch)
        if not own:
            return None
        inputs = self._inputs(
            batch, self._recombining.made_of(own, epoch) if epoch else self._texts.only(own)
        )
        return Lesson(inputs, self._outputs(inputs), self._shares(batch))


class Judge(LessonsOfTexts):
    """Lessons from the held-back texts, as they are. Outputs of encoders are kept, up to memory_nbytes in memory and
    the others in a file in `folder`. Those of causal models, a number for each word of the vocabulary, are computed
    each time."""

    def __init__(
        self,
        reader: Reader,
        texts: TokenizedTexts,
        batch_tokens: int,
        memory_nbytes: int,
        folder: Path,
        of_batches: BatchSlice = ALL_TEXTS,
    ) -> None:
        super().__init__(reader, texts, batch_tokens, of_batches)
        self._left_nbytes, self._folder = memory_nbytes, folder
        self._kept: dict[int, Outputs] = {}

    def lesson(self, batch: int) -> Lesson | None:
        """The slice's lesson; None where the slice has no text of the batch."""
        own = self._own(batch)
        if not own:
            return None
        inputs, shares = self._inputs(batch, self._texts.only(own)), self._shares(batch)
        if self._reader.is_causal:
            return Lesson(inputs, self._outputs(inputs), shares)
        if batch not in self._kept:
            self._kept[batch] = self._placed(self._outputs(inputs), batch)
        return Lesson(inputs, self._kept[batch], shares)

    def _placed(self, outputs: Outputs, batch: int) -> Outputs:
        """Keeps outputs in memory as long as there is room, then in a mapped file, which the kernel reads back."""
        tensors = [*outputs.hidden, outputs.final]
        nbytes = sum(tensor.nbytes for tensor in tensors)
        if nbytes <= self._left_nbytes:
            self._left_nbytes -= nbytes
            return outputs
        path = self._folder / f"outputs-{batch}.f32"
        reserve(path, nbytes)
        flat = np.memmap(path, np.float32, "r+", shape=(nbytes // 4,))
        found, at = [], 0
        for tensor in tensors:
            part = torch.from_numpy(flat[at : at + tensor.numel()]).view(tensor.shape)
            part.copy_(tensor)
            found.append(part)
            at += tensor.numel()
        return Outputs(tuple(found[:-1]), found[-1])


def _shuffled(epoch: int, count: int, seed: int) -> Sequence[int]:
    order = [*range(count)]
    random.Random(f"{seed} {epoch}").shuffle(order)  # noqa: S311 - nothing secret
    return order
