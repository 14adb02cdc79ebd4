"""Models of transformers and sentence-transformers, filled from a dataset; the only importer of these libraries."""
