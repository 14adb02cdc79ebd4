"""Other quantizers, each as a function of a bfloat16 weight, or None if it is not installed.

Peers do what their users call: they take the same matrix in memory and return their own quantized form of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

GROUP = 128


@dataclass(frozen=True, slots=True)
class Peer:
    """A quantizer. run: quantizes a weight; None: it is not installed."""

    name: str
    run: Callable[[torch.Tensor], object] | None


def quantizers(bits: int) -> list[Peer]:
    """The quantizers that support this many bits, torchao first: the targets are about it."""
    found = [_torchao(bits), _quanto(bits)]
    if bits == 8:
        found.append(Peer("torch abs().amax → round → clamp", plain_int8))
    if bits in _GGUF:
        found.append(_gguf(bits))
    return found


def plain_int8(weight: torch.Tensor) -> object:
    """What one would write in torch without a library, with a scale per row."""
    import torch

    values = weight.to(torch.float32)
    scales = values.abs().amax(1, keepdim=True) / 127
    return (values / scales).round().clamp(-128, 127).to(torch.int8), scales


def _torchao(bits: int) -> Peer:
    what = "Int8WeightOnlyConfig" if bits == 8 else f"IntxWeightOnlyConfig int{bits} g{GROUP}"
    if not installed("torchao"):
        return Peer(f"torchao {what}", None)
    return Peer(f"torchao {version('torchao')} {what}", partial(by_torchao, bits=bits))


def by_torchao(weight: torch.Tensor, bits: int) -> torch.nn.Linear:
    """A layer with torchao's form of the weight: int8 by row, fewer bits in groups."""
    with _quiet():
        import torch
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerGroup

        config = (
            Int8WeightOnlyConfig()
            if bits == 8
            else IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(GROUP))
        )
        linear = _linear(weight)
        quantize_(linear, config)
    return linear


def _quanto(bits: int) -> Peer:
    if not installed("optimum.quanto"):
        return Peer(f"optimum-quanto qint{bits}", None)
    return Peer(f"optimum-quanto {version('optimum-quanto')} qint{bits}", partial(by_quanto, bits=bits))


def by_quanto(weight: torch.Tensor, bits: int) -> torch.nn.Module:
    """A model whose layer `0` has quanto's form of the weight."""
    with _quiet():
        import torch
        from optimum import quanto

        model = torch.nn.Sequential(_linear(weight))
        quanto.quantize(model, weights=getattr(quanto, f"qint{bits}"))
        quanto.freeze(model)
    return model


_GGUF = {8: "Q8_0", 4: "Q4_0"}


def _gguf(bits: int) -> Peer:
    what = _GGUF[bits]
    encode = gguf_encoder(what)
    if encode is None:
        return Peer(f"gguf-py {what}", None)

    def run(weight: torch.Tensor) -> object:
        import torch

        return encode(weight.view(torch.uint16).numpy())

    return Peer(f"gguf-py {version('gguf')} {what}", run)


def gguf_encoder(what: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """A function from bfloat16 bits [..., columns] to bytes of a GGUF type. Like gguf's own converter, it widens the
    values and quantizes them in numpy."""
    if not installed("gguf"):
        return None
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[what]

    def encode(bits: np.ndarray) -> np.ndarray:
        wide = (bits.astype(np.uint32) << 16).view(np.float32)
        encoded: np.ndarray = quants.quantize(wide, kind)
        return encoded

    return encode


def installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around them
        return False


def _linear(weight: torch.Tensor) -> torch.nn.Linear:
    """A layer around `weight`, which is not copied."""
    import torch

    rows, columns = weight.shape
    linear = torch.nn.Linear(columns, rows, bias=False, dtype=weight.dtype, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return linear


@contextmanager
def _quiet() -> Iterator[Any]:
    """Suppresses deprecation warnings of other packages' imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
