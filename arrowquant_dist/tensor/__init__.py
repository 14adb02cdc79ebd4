"""Quantizes one tensor, or one row block of a tensor, to the form that V2 stores, and decodes it. No files."""

from arrowquant_dist.tensor.layer import quantize_layer
from arrowquant_dist.tensor.quantize import quantize_tensor, quantize_values
from arrowquant_dist.tensor.quantized import QuantizedTensor, row_nbytes
from arrowquant_dist.tensor.source import DECODED_BITS

__all__ = [
    "DECODED_BITS",
    "QuantizedTensor",
    "quantize_layer",
    "quantize_tensor",
    "quantize_values",
    "row_nbytes",
]
