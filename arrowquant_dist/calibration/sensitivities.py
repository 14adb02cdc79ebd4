"""How much a model depends on rows of its embeddings: found once, before anything is quantized, for methods that let
the errors of a row make up for each other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_dist.calibration.arrays import ArrayDraft, ArrayFile, write_arrays
from arrowquant_dist.calibration.layout import SENSITIVITIES_PATH
from arrowquant_dist.calibration.quantizing import PathQuantizer
from arrowquant_dist.calibration.record import CalibratedLayer
from arrowquant_dist.calibration.reduce import PartStatistics
from arrowquant_dist.config import QuantizationConfig, QuantSpec
from arrowquant_dist.errors import listed
from arrowquant_dist.methods import COUNTS, HESSIAN, SENSITIVITY
from arrowquant_dist.storage.base import Store

if TYPE_CHECKING:
    from arrowquant_dist.models.paths import Paths
    from arrowquant_dist.models.subject import Subject
    from arrowquant_dist.models.tokens import TokenizedTexts

_COUNTED, _GPTQ = "counted", "gptq"
_USERS = (_COUNTED, _GPTQ)


def quantizes_by_them(config: QuantizationConfig, heads: Collection[str]) -> bool:
    """Whether embeddings are quantized by methods that use sensitivities. heads: embeddings that are output heads as
    well. gptq has a Hessian for these (ahead.py), and models that have one hardly ever have other embeddings."""
    methods = {config.method, *(override.method for override in config.overrides)}
    return _COUNTED in methods or (_GPTQ in methods and not heads)


def known_sensitivities(subject: Subject, store: Store, tokens: TokenizedTexts) -> ArrayFile:
    """Sensitivities of embeddings by their stored names. They are read where an earlier or another process of this
    calibration has found them. Raises what models.sensitivity raises."""
    if not store.exists(SENSITIVITIES_PATH):
        from arrowquant_dist.models.sensitivity import row_sensitivities

        found = row_sensitivities(subject, tokens)
        write_arrays(
            store, SENSITIVITIES_PATH, [ArrayDraft.of(name, squares) for name, squares in found.items()]
        )
    return ArrayFile(store, SENSITIVITIES_PATH)


def with_sensitivities(
    found: PartStatistics, known: ArrayFile | None, specs: Mapping[str, QuantSpec]
) -> PartStatistics:
    """`found`, with the sensitivities of embeddings that are known. specs: {layer: spec}."""
    if known is None:
        return found
    drafts, layers = [*found.drafts], []
    for layer in found.layers:
        name = layer.name
        if name in known and name in specs and specs[name].method in _USERS:
            shape = known.shapes[name]
            drafts.append(ArrayDraft(f"{name}.{SENSITIVITY}", shape, "float32", partial(_read, known, name)))
            layer = replace(layer, parts=(*layer.parts, SENSITIVITY))  # noqa: PLW2901
        layers.append(layer)
    return PartStatistics(drafts, layers, found.unfit)


def sensitivity_notes(
    paths: Paths,
    tokens: TokenizedTexts,
    config: QuantizationConfig | None,
    layers: Iterable[CalibratedLayer],
) -> list[str]:
    """Notes about embeddings among `layers` that would be quantized by their sensitivities if these were known."""
    from arrowquant_dist.models.sensitivity import why_without

    if config is None or not quantizes_by_them(config, paths.tied_heads):
        return []
    specs = PathQuantizer(config, paths.layers).specs
    lacking = [
        layer.name
        for layer in layers
        if layer.name in specs
        and specs[layer.name].method in _USERS
        and COUNTS in layer.parts
        and {SENSITIVITY, HESSIAN}.isdisjoint(layer.parts)
    ]
    if not lacking:
        return []
    why = why_without(paths.original, tokens) or "torch finds no finite gradients for them"
    return [f"rows of {listed(lacking)} are rounded without regard to their effect in the model: {why}"]


def _read(known: ArrayFile, name: str) -> list[np.ndarray]:
    return [known.read(name)]
