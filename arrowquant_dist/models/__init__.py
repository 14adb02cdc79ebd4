"""Models of transformers and sentence-transformers, filled from a dataset. No other subpackage imports them."""

from arrowquant_dist.models.load import load_model
from arrowquant_dist.models.sentences import load_sentence_transformer
from arrowquant_dist.models.tokenizer import load_tokenizer

__all__ = ["load_model", "load_sentence_transformer", "load_tokenizer"]
