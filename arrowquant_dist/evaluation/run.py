"""run_evaluation(): a model and a dataset of it get the same texts, and their outputs are compared.

Both have their weights as they are stored, decoded to the source's dtype, and compute in float32 (models/pair.py).
Encoders are in memory one after the other, since embeddings are small. Causal models are in memory together, with four
bytes a parameter each, since next-token distributions of thousands of positions are large.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING

from arrowquant_dist.config import Storage
from arrowquant_dist.errors import InvalidConfig, listed
from arrowquant_dist.evaluation.embeddings import MOST_PAIRED, NEIGHBOURS, embedding_figures
from arrowquant_dist.evaluation.next_tokens import NextTokens
from arrowquant_dist.evaluation.publish import EvaluatedDataset
from arrowquant_dist.evaluation.steps import Teller
from arrowquant_dist.location import Location
from arrowquant_dist.models.agree import refuse_disagreement
from arrowquant_dist.report.evaluation import Evaluation, TextFacts
from arrowquant_dist.texts import Texts
from arrowquant_dist.texts.steps import StepCallback

if TYPE_CHECKING:
    from arrowquant_dist.models.kinds import ModelKind
    from arrowquant_dist.models.pair import Opened

_PACKAGES = ("arrowquant-dist", "torch", "transformers", "sentence-transformers", "tokenizers", "numpy")


def run_evaluation(
    model: Location,
    target: Location,
    texts: Texts,
    storages: tuple[Storage, Storage],
    memory_nbytes: int,
    progress: StepCallback | None,
) -> Evaluation:
    """Writes the result to the dataset's report and returns it. storages: those of model and target. memory_nbytes: for
    reading, besides the models. Raises what `evaluate` raises."""
    from arrowquant_dist.models.kinds import kind_of_model
    from arrowquant_dist.models.pair import opened_dataset, opened_model
    from arrowquant_dist.models.threads import bounded_threads

    began, teller = time.monotonic(), Teller(progress)
    place = EvaluatedDataset.of(target, storages[1])
    with (
        bounded_threads(),
        opened_model(model, storages[0], memory_nbytes, place.manifest.unscaled) as original,
        opened_dataset(target, storages[1], memory_nbytes) as dataset,
    ):
        kind = kind_of_model(original.files)
        refuse_disagreement(original, dataset)
        others = _on_other_weights(original, dataset, place)
        compare = _compare_next_tokens if kind.name == "causal" else _compare_embeddings
        found = compare(kind, original, dataset, texts, teller)
    seconds = time.monotonic() - began
    found = replace(found, dataset=place.identity, seconds=seconds, notes=(*others, *found.notes))
    place.publish(found)
    return found


def _compare_embeddings(
    kind: ModelKind, original: Opened, dataset: Opened, texts: Texts, teller: Teller
) -> Evaluation:
    from arrowquant_dist.models.encoders import embed

    one, other = (
        embed(
            kind,
            original.files,
            side.source,
            texts.items,
            teller.loading(f"reading {name}"),
            teller.counting(f"embedding with {name}", len(texts)),
        )
        for name, side in (("the original", original), ("the dataset", dataset))
    )
    notes = _left_over(one.left_over)
    if len(texts) <= NEIGHBOURS:
        notes.append(f"recall@{NEIGHBOURS} needs more than {NEIGHBOURS} texts, but there are {len(texts)}")
    if len(texts) < 3:
        notes.append(f"the correlation of similarities needs three texts, but there are {len(texts)}")
    if len(texts) > MOST_PAIRED:
        notes.append(
            f"correlation and recall@{NEIGHBOURS} are over {MOST_PAIRED} of the texts, evenly spread"
        )
    facts = TextFacts(texts.name, texts.digest, len(texts), texts.skipped, one.tokens, one.longest, one.cut)
    found = _evaluation(kind, original, facts, notes)
    return replace(found, embeddings=embedding_figures(one.values, other.values), pooling=one.pooling)


def _compare_next_tokens(
    kind: ModelKind, original: Opened, dataset: Opened, texts: Texts, teller: Teller
) -> Evaluation:
    import torch

    from arrowquant_dist.models.causal import MOST_TOKENS, logits_of, looks_ahead, tokens_at_a_time
    from arrowquant_dist.models.pair import tokenizer_of, transformers_model
    from arrowquant_dist.models.tokens import (
        batches,
        longest_input,
        padding_of,
        refuse_unknown_ids,
        tokenized,
    )

    tokenizer = tokenizer_of(original.files)
    longest = min(longest_input(tokenizer, kind.config) or MOST_TOKENS, MOST_TOKENS)
    made = tokenized(tokenizer, texts.items, longest, padding_of(tokenizer, kind.config))
    lengths = [length if length > 1 else 0 for length in made.lengths]
    if not any(lengths):
        raise InvalidConfig("no text has two tokens, so there is no next token to compare", uri=texts.name)
    one, left_over = transformers_model(kind, original.source, teller.loading("reading the original"))
    refuse_unknown_ids(made, one)
    if looks_ahead(one, next(ids for ids in made.ids if len(ids) > 1)):
        message = (
            f"{kind.architecture} sees later tokens, so next tokens cannot be compared; use a model with "
            "is_decoder"
        )
        raise InvalidConfig(message, uri=original.files.uri)
    other, _ = transformers_model(kind, dataset.source, teller.loading("reading the dataset"))
    collected = NextTokens(len(texts))
    done = teller.counting("comparing next tokens", sum(length > 0 for length in lengths))
    for batch in batches(lengths, tokens_at_a_time(one)):
        p, q = (logits_of(each, made, batch) for each in (one, other))
        for row, index in enumerate(batch):
            following = torch.tensor(made.ids[index][1:])
            positions = len(following)
            collected.add(index, p[row, :positions], q[row, :positions], following)
        done(len(batch))
    short = lengths.count(0)
    notes = _left_over(left_over)
    if short:
        notes.append(f"texts of a single token, which has no next one: {short} of {len(texts)}")
    facts = TextFacts(
        texts.name, texts.digest, len(texts), texts.skipped, sum(made.lengths), longest, made.cut
    )
    return replace(_evaluation(kind, original, facts, notes), next_tokens=collected.figures())


def _evaluation(kind: ModelKind, original: Opened, facts: TextFacts, notes: Sequence[str]) -> Evaluation:
    """An evaluation without figures and without what is known only at the end."""
    if facts.cut:
        notes = [
            *notes,
            f"texts that were cut to {facts.longest} tokens: {facts.cut} of {facts.texts}",
        ]
    return Evaluation(
        kind=kind.name,
        architecture=kind.architecture,
        model=original.source.uri,
        dataset="",
        texts=facts,
        embeddings=None,
        next_tokens=None,
        arithmetic="float32",
        pooling=None,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=0.0,
        versions=_versions(),
        notes=tuple(notes),
    )


def _on_other_weights(original: Opened, dataset: Opened, place: EvaluatedDataset) -> list[str]:
    """A note where the dataset was not made of these weights. This is not an error: the distance from another model of
    the same layers, such as the one before some more training, is a valid question of its own."""
    from arrowquant_dist.models.original import difference_from_original, trained_names
    from arrowquant_dist.models.pair import sources

    trained = trained_names(place.manifest.kept_reasons(place.store))
    difference = difference_from_original(*sources(original, dataset), place.manifest, trained)
    if difference is None:
        return []
    return [
        f"the dataset was not made from these weights ({difference}), so its distance is not due to quantization alone"
    ]


def _left_over(names: Sequence[str]) -> list[str]:
    return (
        [f"layers that the model has no place for, and that are not counted: {listed(names)}"]
        if names
        else []
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # an extra, or run from a checkout
            continue
    return found
