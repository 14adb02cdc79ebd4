"""One tensor, or one row block of one: quantized as V2 stores it, and the way back. In memory, no files."""

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
