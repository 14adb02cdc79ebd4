"""Modules whose codes can be kept, as each format stores them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.checkpoint.quantized_models import Tensors
from tests.checkpoint.word_models import Words
from tests.encodings.test_packed import INTEGERS, PACKED, compressed

SHAPE = (160, 256)
Made = tuple[Tensors, dict[str, Any]]  # the stored tensors of a module, and its quantization_config


def _gptq(name: str, **settings: Any) -> Made:
    made = Words.random(SHAPE, 4, 64, seed=len(name))
    return made.gptq(name), {"quant_method": "gptq", "bits": 4, "group_size": 64, **settings}


def _gptq_symmetric(name: str) -> Made:
    made = Words.random(SHAPE, 4, 64, seed=len(name))
    made.zeros[:] = 8
    return made.gptq(name), {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True}


def _awq(name: str, version: str = "gemm") -> Made:
    made = Words.random(SHAPE, 4, 64, seed=len(name))
    config = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": version}
    return made.awq(name) if version == "gemm" else made.gemv(name), config


def _awq_rows(name: str) -> Made:
    return _awq(name, "gemv")


def _compressed(form: str, **weights: Any) -> Callable[[str], Made]:
    def made(name: str) -> Made:
        stored, _, config = compressed(form, SHAPE, weights, torch.float16)
        turned = {"up": 1, "gate": 3}[name]  # different, because equal layers would be stored once
        return {
            key.replace("a.", f"{name}."): tensor.roll(turned, 0) if tensor.ndim == 2 else tensor
            for key, tensor in stored.items()
        }, config

    return made


W4 = {"num_bits": 4, "strategy": "group", "group_size": 64}
MAKERS: dict[str, Callable[[str], Made]] = {
    "gptq": _gptq,
    "gptq symmetric": _gptq_symmetric,
    "awq": _awq,
    "awq rows": _awq_rows,
    "w4": _compressed(PACKED, symmetric=True, **W4),
    "w4 asymmetric": _compressed(PACKED, symmetric=False, **W4),
    "w8": _compressed(PACKED, num_bits=8, symmetric=True, strategy="channel"),
    "w2": _compressed(PACKED, num_bits=2, symmetric=True, strategy="group", group_size=32),
    "w8a8": _compressed(INTEGERS, num_bits=8, symmetric=True, strategy="channel"),
    "tensor": _compressed(INTEGERS, num_bits=8, symmetric=True, strategy="tensor"),
}
SYMMETRIC = {"gptq symmetric", "w4", "w8", "w2", "w8a8", "tensor"}
