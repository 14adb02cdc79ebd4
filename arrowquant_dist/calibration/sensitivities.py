"""How a model depends on rows of its embeddings: found once, before anything is quantized, for method `counted`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from arrowquant_dist.methods import COUNTS, SENSITIVITY
from arrowquant_dist.storage.base import Store

if TYPE_CHECKING:
    from arrowquant_dist.models.paths import Paths
    from arrowquant_dist.models.subject import Subject
    from arrowquant_dist.models.tokens import TokenizedTexts

_COUNTED = "counted"


def counts_rows(config: QuantizationConfig) -> bool:
    """Whether any layer is quantized by the counts of its rows."""
    return _COUNTED in {config.method, *(override.method for override in config.overrides)}


def known_sensitivities(subject: Subject, store: Store, tokens: TokenizedTexts) -> ArrayFile:
    """Of embeddings, by their stored names; of another process of this calibration, or one that was stopped, where that
    has found them. Raises what models.sensitivity raises."""
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
    """What is known of layers that are quantized by the counts of their rows. specs: by layer."""
    if known is None:
        return found
    drafts, layers = [*found.drafts], []
    for layer in found.layers:
        name = layer.name
        if name in known and name in specs and specs[name].method == _COUNTED:
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
    """Of those of `layers` that are quantized by the counts of their rows and by nothing else."""
    from arrowquant_dist.models.sensitivity import why_without

    if config is None or not counts_rows(config):
        return []
    specs = PathQuantizer(config, paths.layers).specs
    counted = [layer for layer in layers if layer.name in specs and specs[layer.name].method == _COUNTED]
    lacking = [layer.name for layer in counted if COUNTS in layer.parts and SENSITIVITY not in layer.parts]
    if not lacking:
        return []
    why = why_without(paths.original, tokens) or "torch finds no gradients that come back to them"
    return [f"rows of {listed(lacking)} are rounded without regard to what the model makes of them: {why}"]


def _read(known: ArrayFile, name: str) -> list[np.ndarray]:
    return [known.read(name)]
