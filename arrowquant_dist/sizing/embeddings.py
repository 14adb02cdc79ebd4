"""Which layers are embeddings, whose rows are read by index, and which of these are the output head as well."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import Storage
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.plan import Plan, RowBlock
from arrowquant_dist.reduce.layer_types import EMBEDDINGS, layer_type
from arrowquant_dist.sizing.candidates import HEAD_TOO, RowSteps
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import redact
from arrowquant_dist.strict_json import parse_json

_CONFIG = "config.json"
# Names of output heads. Every token meets all of their rows, so rows count alike. `output.weight` is Meta's, in Llama.
_HEAD = re.compile(
    r"(?:^|\.)(?:lm_head|embed_out|output_projection|predictions\.decoder)(?:\.|$)|^output\.weight$"
)
# Names of classes of transformers that have a head.
_WITH_HEAD = re.compile(r"ForCausalLM|LMHead|ForConditionalGeneration|ForMaskedLM|ForPreTraining")


def is_embedding(name: str, names: Collection[str] = ()) -> bool:
    """Whether a layer's rows are read by index. names: other names that the source has for the layer, where it is tied.

    An output head that is not an embedding at the same time is a matrix like any other.
    """
    return any(layer_type(each) == EMBEDDINGS and not _HEAD.search(each) for each in (name, *names))


def row_steps_of(
    plan: Plan,
    layers: Sequence[tuple[RowBlock, ...]],
    embeddings: RowSteps,
    checkpoint: Checkpoint,
    storage: Storage,
) -> list[RowSteps | None]:
    """LayerSample.row_steps of each layer. embeddings: steps of embeddings that are not heads. Raises what reading the
    source's config.json raises, and InvalidCheckpoint where it is not JSON."""
    names = defaultdict(list)
    for alias, stored in plan.aliases.items():
        names[stored].append(alias)
    rows = {blocks[0].layer.name: sum(block.rows for block in blocks) for blocks in layers}
    found: dict[str, RowSteps | None] = {
        name: embeddings if is_embedding(name, names[name]) else None for name in rows
    }
    every = [*rows, *plan.aliases]
    for name in _heads_too([name for name in found if found[name]], every, names, rows, checkpoint, storage):
        found[name] = HEAD_TOO
    return [found[name] for name in rows]


def _heads_too(
    embeddings: Sequence[str],
    every: Iterable[str],
    names: dict[str, list[str]],
    rows: dict[str, int],
    checkpoint: Checkpoint,
    storage: Storage,
) -> list[str]:
    """Those of `embeddings` that are tied to the output head: by a name in the source; or, where no name there is a
    head's and the model has a head, the embedding with most rows, which is the vocabulary's."""
    if not embeddings:
        return []
    if any(map(_HEAD.search, every)):
        return [name for name in embeddings if any(map(_HEAD.search, (name, *names[name])))]
    return [max(embeddings, key=rows.__getitem__)] if _has_head(checkpoint, storage) else []


def _has_head(checkpoint: Checkpoint, storage: Storage) -> bool:
    if _CONFIG not in checkpoint.sidecars:
        return False
    store = open_store(checkpoint.uri, storage)
    try:
        config = parse_json(store.read(_CONFIG))
    except ValueError as error:
        message = f"not valid JSON ({error}); download it again"
        raise InvalidCheckpoint(message, uri=redact(store.url(_CONFIG))) from error
    classes = config.get("architectures") if isinstance(config, dict) else None
    return isinstance(classes, list) and any(_WITH_HEAD.search(str(each)) for each in classes)
