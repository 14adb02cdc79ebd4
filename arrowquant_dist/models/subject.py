"""The subject of a calibration: a model's texts as tokens, in batches without padding, and the model as a chain."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain as joined
from itertools import pairwise

import torch

from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.errors import InvalidConfig, counted
from arrowquant_dist.models.build import (
    Built,
    Wanted,
    build_model,
    class_of,
    config_of,
    imported_transformers,
)
from arrowquant_dist.models.causal import MOST_TOKENS
from arrowquant_dist.models.chain import Chain
from arrowquant_dist.models.files import SmallFiles
from arrowquant_dist.models.kinds import ModelKind, kind_of_model
from arrowquant_dist.models.pair import Opened, tokenizer_of
from arrowquant_dist.models.sentences import transformer_part
from arrowquant_dist.models.source import LayerSource, layers_by_name
from arrowquant_dist.models.tokens import TokenizedTexts, longest_input, padding_of, tokenized

TOGETHER_TOKENS = (
    2048  # per batch, whose texts all have one length; a text that is longer by itself is a batch of its own
)
SLICE_TOKENS = 4096  # tokens that one worker processes at a time
MOST_SLICES = 32  # each stores its own sums at OUT until they are added up


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to calibrate.

    opened: its files and layers. kind: its kind; for sentence-transformers, whose first module is calibrated, with the
    config and class of that module. layers: {name in the model's checkpoint: layer}. longest: the most tokens of a
    text. files: the small files of the calibrated part.
    """

    opened: Opened
    kind: ModelKind
    layers: Mapping[str, StoredLayer]
    longest: int | None
    files: SmallFiles

    @classmethod
    def of(cls, opened: Opened) -> Subject:
        """Raises InvalidConfig for kinds of models that are not evaluated, and models that transformers cannot
        build."""
        kind, source = kind_of_model(opened.files), opened.source
        if kind.name == "sentence-transformers":
            part = transformer_part(opened.files, source)
            config = config_of(part.folder, imported_transformers().AutoModel, opened.files.uri)
            model_class = class_of(imported_transformers().AutoModel, config, opened.files.uri)
            kind = ModelKind(kind.name, model_class.__name__, config, model_class)
            return cls(opened, kind, part.layers, part.longest, part.files)
        return cls(opened, kind, layers_by_name(source), None, opened.files)

    @property
    def behind(self) -> frozenset[str]:
        """Stored names of layers outside the calibrated part: of sentence-transformers modules after the first one,
        such as a Dense."""
        own = {layer.name for layer in self.layers.values()}
        return frozenset(self.opened.source.layers) - own

    def tokens(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenizes texts. Raises InvalidConfig if there is no tokenizer."""
        tokenizer = tokenizer_of(self.files)
        limits = [longest_input(tokenizer, self.kind.config), self.longest, MOST_TOKENS]
        longest = min(limit for limit in limits if limit is not None)
        return tokenized(tokenizer, texts, longest, padding_of(tokenizer, self.kind.config))

    def chain(self, source: LayerSource, first: Mapping[str, torch.Tensor]) -> Chain:
        """Returns a chain over a new model. source: source of its weights. first: a batch to test it with."""
        return Chain(self._built(source), source, first)

    def _built(self, source: LayerSource) -> Built:
        config = copy.deepcopy(self.kind.config)
        wanted = Wanted(torch.float32, None, ("pooler",), ("*",))
        built = build_model(self.kind.model_class, config, self.layers, source, wanted)
        built.model.config.use_cache = False
        built.model.set_experts_implementation("eager")  # each expert has products of its own
        built.model.eval()
        return built


def batches_of_one_length(lengths: Sequence[int]) -> list[list[int]]:
    """Returns batches of indices of texts that go through a model together, the longest first. None is padded, so that
    no position, mask or router ever sees anything but text."""
    alike: defaultdict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        if length:
            alike[length].append(index)
    found = []
    for length in sorted(alike, reverse=True):
        texts, most = alike[length], max(1, TOGETHER_TOKENS // length)
        found += [texts[start : start + most] for start in range(0, len(texts), most)]
    return found


def slices_of(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[range]:
    """Returns runs of batches that do not depend on the number of workers. Their number is a power of two, from 2 to
    MOST_SLICES, and they have about SLICE_TOKENS tokens each, or more if there are MOST_SLICES."""
    sizes = [sum(lengths[index] for index in batch) for batch in batches]
    wanted = 2
    while wanted < MOST_SLICES and wanted * SLICE_TOKENS < sum(sizes):
        wanted *= 2
    edges, done = [0], 0
    for number, size in enumerate(sizes):
        done += size
        if done * wanted >= sum(sizes) * len(edges):
            edges.append(number + 1)
    return [range(*edge) for edge in pairwise(edges)]


def refuse_too_few(texts: TokenizedTexts, least: int) -> None:
    """Raises InvalidConfig if the texts have fewer than `least` tokens."""
    found = sum(texts.lengths)
    if found < least:
        tokens = counted(found, "token")
        message = f"the texts have {tokens}, too few for any statistics; give {least} or more, and some"
        raise InvalidConfig(f"{message} hundred texts for useful statistics")


def flattened(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor([*joined.from_iterable(rows)], dtype=torch.int32)
