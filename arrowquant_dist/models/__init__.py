"""Models of transformers and sentence-transformers, filled from a dataset; the only importer of these libraries."""

from arrowquant_dist.models.load import load_model

__all__ = ["load_model"]
