"""The memory that a training needs, known before anything is read."""

from __future__ import annotations

from collections.abc import Mapping

from arrowquant_dist.config import BITS
from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.errors import InvalidConfig

_OF_MODELS = 8  # bytes for each value: float32, in the original and in the student
# Bytes for each value with a code: start of its latent code, its offset, two moments of Adam, the best code; and in a
# layer that a step decodes whole, the value, its gradient and that of the offset.
_OF_CODES = 4 + 4 + 8 + 1 + 12
_OF_VECTORS = 24


def needed_nbytes(layers: Mapping[str, StoredLayer]) -> int:
    """Bytes for both models and the training, besides what is read and the outputs that are kept."""
    total = 0
    for layer in layers.values():
        own = _OF_CODES if layer.quant_type in BITS else _OF_VECTORS if len(layer.shape) == 1 else 0
        total += layer.num_params * (_OF_MODELS + own)
    return total


def refuse_too_large(layers: Mapping[str, StoredLayer], most_nbytes: int, uri: str) -> None:
    """Raises InvalidConfig, with the size that is needed, where it is more than `most_nbytes`."""
    needed = needed_nbytes(layers)
    if needed > most_nbytes:
        message = (
            f"training it takes {rounded_size(needed)} of memory, but this process has no more than "
            f"{rounded_size(most_nbytes)}; use a machine with more"
        )
        raise InvalidConfig(message, uri=uri)
