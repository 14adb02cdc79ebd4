"""Torch modules whose weights stay codes in memory, and filling a model with them. Imports torch: import it late."""

from arrowquant_dist.modules.embedding import QuantEmbedding
from arrowquant_dist.modules.linear import QuantLinear
from arrowquant_dist.modules.load import load_codes_into
from arrowquant_dist.modules.weight import QuantWeight

__all__ = ["QuantEmbedding", "QuantLinear", "QuantWeight", "load_codes_into"]
