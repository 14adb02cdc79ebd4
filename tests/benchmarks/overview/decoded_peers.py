"""Matrices quantized by other libraries: the decoded values, and the bytes that the codes would be stored in.

Bytes are those of the codes, packed as tightly as their bits allow, and of scales and zero points in the dtype that the
library keeps, without the framing of a file: no file of theirs takes less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ctypes import c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch

from tests.benchmarks.half_quadratic import half_quadratic
from tests.benchmarks.peers import GROUP, by_quanto, by_torchao, installed

Stored = tuple[torch.Tensor, int]  # decoded values in float32, and bytes
_HALF_NBYTES = 2


@dataclass(frozen=True, slots=True)
class Decoder:
    """A peer's way. stored: quantizes a float32 matrix [rows, columns], with columns a multiple of GROUP."""

    maker: str
    name: str
    stored: Callable[[torch.Tensor], Stored]


def decoders() -> Iterator[Decoder]:
    """The decoders of the peers that are installed, and of HQQ's solver."""
    if installed("torchao"):
        maker = f"torchao {version('torchao')}"
        yield Decoder(maker, "int8 a row", lambda weight: _torchao(weight, 8))
        yield Decoder(maker, f"int4 g{GROUP}", lambda weight: _torchao(weight, 4))
        yield Decoder(maker, f"int2 g{GROUP}", lambda weight: _torchao(weight, 2))
    if installed("optimum.quanto"):
        maker = f"optimum-quanto {version('optimum-quanto')}"
        yield Decoder(maker, "qint8", lambda weight: _quanto(weight, 8))
        yield Decoder(maker, "qint4", lambda weight: _quanto(weight, 4))
        yield Decoder(maker, "qint2", lambda weight: _quanto(weight, 2))
    if installed("gguf"):
        maker = f"gguf-py {version('gguf')}"
        for what in ("Q8_0", "Q5_1", "Q4_1", "Q4_0"):
            yield Decoder(maker, what, lambda weight, what=what: _gguf(weight, what))  # type: ignore[misc]
    if installed("gguf") and installed("llama_cpp"):
        # Its types of 2 and 3 bits have blocks of 256 values, which MiniLM's rows are no multiple of.
        maker = f"llama.cpp (llama-cpp-python {version('llama-cpp-python')})"
        yield Decoder(maker, "IQ4_NL", lambda weight: _llama(weight, "IQ4_NL"))
    for bits in (4, 3, 2):
        name = f"{bits} bits g{GROUP}"
        yield Decoder("HQQ's solver", name, lambda weight, bits=bits: _hqq(weight, bits))  # type: ignore[misc]


def _torchao(weight: torch.Tensor, bits: int) -> Stored:
    return _of_inner_tensors(by_torchao(weight, bits).weight, bits, "qdata")


def _quanto(weight: torch.Tensor, bits: int) -> Stored:
    return _of_inner_tensors(by_quanto(weight, bits).get_parameter("0.weight"), bits, "_data")


def _of_inner_tensors(weight: torch.Tensor, bits: int, codes: str) -> Stored:
    names, _ = weight.__tensor_flatten__()  # type: ignore[attr-defined]
    beside = sum(getattr(weight, name).nbytes for name in names if name != codes)
    return weight.dequantize().detach().float(), weight.numel() * bits // 8 + beside


def _gguf(weight: torch.Tensor, what: str) -> Stored:
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[what]
    encoded = quants.quantize(weight.numpy(), kind)
    return torch.from_numpy(quants.dequantize(encoded, kind)), encoded.nbytes


def _llama(weight: torch.Tensor, what: str) -> Stored:
    """Without an importance matrix."""
    from gguf import GGMLQuantizationType, quant_shape_to_byte_shape, quants
    from llama_cpp._ggml import libggml as library

    kind, (rows, columns) = GGMLQuantizationType[what], weight.shape
    encoded = np.empty(quant_shape_to_byte_shape((rows, columns), kind), np.uint8)
    quantize = library.ggml_quantize_chunk
    quantize.restype = c_size_t
    quantize.argtypes = [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]
    weight = weight.float().contiguous()
    done = quantize(kind.value, weight.data_ptr(), encoded.ctypes.data, 0, rows, columns, None)
    if done != encoded.nbytes:
        raise RuntimeError(f"llama.cpp wrote {done} bytes of {what}, not {encoded.nbytes}")
    return torch.from_numpy(quants.dequantize(encoded, kind)), encoded.nbytes


def _hqq(weight: torch.Tensor, bits: int) -> Stored:
    values = half_quadratic(weight, bits)()
    beside = weight.numel() // GROUP * 2 * _HALF_NBYTES  # a scale and a zero point per group
    return values, weight.numel() * bits // 8 + beside
