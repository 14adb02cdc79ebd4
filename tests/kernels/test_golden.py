"""Bytes that must never change by accident, because comparing datasets and resuming runs rely on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kernels.weights import group_spec, quantized, tensor_spec

# [2, 10], groups of 4, 4 and 2: exact in all source dtypes
_WEIGHTS = torch.tensor([(37 * i * i + 11 * i) % 97 - 44 for i in range(20)]).reshape(2, 10) / 32

# (type, method, zero points): hex of (codes, scales, zero points)
GOLDEN = {
    ("int8", "rtn", "none"): (
        "810c54592581f10bdb7fd2f2d57fd3200581377f",
        "c662313c2412093cd66a353cf67a3d3c87c3e13b753a1d3c",
        "",
    ),
    ("int8", "rtn", "real"): (
        "8023787f7f802e56807f80b0847f037f5380807f",
        "9796163cb1b0b03be9e8e83b8180003c8d8c8c3bb1b0303b",
        "caccac4145178a428db08dc2011071c2ffff9742d185a2c3",
    ),
    ("int8", "rtn", "whole"): (
        "8024797f7f802e56807f80b0847f037f5380ef7f",
        "9796163cb1b0b03be9e8e83b8180003c8d8c8c3b9d9c9c3b",
        "0000b04100008a4200008ec2000070c200009842000000c3",
    ),
    ("int8", "mse", "none"): (
        "800c545a2581f10bdb7fd2f2d57fd2200580377f",
        "fc3b303c9c2d093c484c353c487b3d3cacd1df3bf2631d3c",
        "",
    ),
    ("int8", "mse", "real"): (
        "8023787f7f802e56807f80b0847f037f5380807f",
        "b9a5163cf4c9b03be9e8e83b1a85003cef9a8c3bb1b0303b",
        "0000ac4100e889428db08dc200e070c200c09742d185a2c3",
    ),
    ("int8", "mse", "whole"): (
        "8023777e7f802e56817f80b0847f037f5380ef7f",
        "8b3b173c6fc1b03b65e1e93bbe8a003c83858c3b77a59c3b",
        "0000a84100008a4200008cc2000070c200009842000000c3",
    ),
    ("int4", "rtn", "none"): ("91dd1a97f675f6a618fb", "9224493eb76d1b3edbb64d3e6edb563e0000003e2549323e", ""),
    ("int4", "rtn", "real"): (
        "a0ff0fdaf030f0f80cf0",
        "0000203ebcbbbb3d7777f73d8988083e5555953dbcbb3b3d",
        "cdcc4c3f73d16540ee6994c0008080c0010080402eba9cc1",
    ),
    ("int4", "rtn", "whole"): (
        "a0ff0fdbf030f0f80cf7",
        "0000203ebcbbbb3d7777f73d8988083e5555953d6666a63d",
        "0000803f000080400000a0c0000080c000008040000000c1",
    ),
    ("int4", "mse", "none"): ("90ed0a97f69b0ba508fb", "00002e3e0000093e00004e3e000039be0000df3d0000333e", ""),
    ("int4", "mse", "real"): (
        "a0ff0fdaf030f0f80df0",
        "00001e3e0000ba3d7777f73d0000083e0000933dbcbb3b3d",
        "00007c3f00006a40ee6994c0000081c0008088402eba9cc1",
    ),
    ("int4", "mse", "whole"): (
        "a0ff0ecaf130f0f80cf7",
        "00001e3e0000c73d0000033e0000083e0000963d0000a43d",
        "0000803f00004040000080c0000080c000008040000000c1",
    ),
    ("int3", "rtn", "none"): ("a1dd903be3be323d", "abaaea3e5555b53e0000f03eabaafa3e5555953e0000d03e", ""),
    ("int3", "rtn", "real"): (
        "e07fd43808ce1b38",
        "b76dab3e9224493e4992843e2549923e0000203e9224c93d",
        "0774da3d185db43f12961bc0000009c0cdcccc3fa38b16c1",
    ),
    ("int3", "rtn", "whole"): (
        "e07fb03808ce1b3b",
        "b76dab3e9224493e4992843e2549923e0000203e2549323e",
        "000000000000803f000000c0000000c000000040000080c0",
    ),
    ("int3", "mse", "none"): ("a7b49305e3def102", "0000edbe0000b3be0000b6be0000fd3e000093be000098be", ""),
    ("int3", "mse", "real"): (
        "e87fd43808ce1b38",
        "0000a93e0000473e4992843e0000903e00001f3e9224c93d",
        "0000903e0000c03f12961bc0000010c00000e23fa38b16c1",
    ),
    ("int3", "mse", "whole"): (
        "e07fb030083e173b",
        "0000a83e00004f3e0000923e0000903e0000323e0000333e",
        "000000000000803f000040c0000000c00000803f000080c0",
    ),
    ("int2", "rtn", "none"): ("f9a60eea6a0e", "0000b03f0000883f0000b43f0000bc3f0000603f00009c3f", ""),
    ("int2", "rtn", "real"): (
        "f8e30cc42e0c",
        "0000483fabaaea3eabaa1a3fabaa2a3fabaaba3eabaa6a3e",
        "8fc275beb8e8a23e58eea9bf00009abfcbcccc3e8c2e8ac0",
    ),
    ("int2", "rtn", "whole"): (
        "f8a30cc42d0d",
        "0000483fabaaea3eabaa1a3fabaa2a3fabaaba3e0000d03e",
        "0000008000000000000080bf000080bf00000000000000c0",
    ),
    ("int2", "mse", "none"): ("f9a30e3b2d0f", "00008b3f0000fa3e0000b43f000029bf0000c33e0000603f", ""),
    ("int2", "mse", "real"): (
        "f8e30cc4290c",
        "0000453f0000d83eabaa1a3f0000293f0000fd3eabaa6a3e",
        "000050be0000f03e58eea9bf00008ebf000090be8c2e8ac0",
    ),
    ("int2", "mse", "whole"): (
        "f8a30cc42d0d",
        "0000453f0000fa3e0000253f0000293f0000c33e0000d63e",
        "0000008000000000000080bf000080bf00000080000000c0",
    ),
}
TENSOR_GOLDEN = {
    ("int8", "rtn"): ("80074d52179cf004d779ccedce7fdf0ffead2b69", "b7b6363c", "6e8196c0"),
    ("int8", "mse"): ("80074d52179cf004d77accedce7fdf0ffead2b69", "2d75363c", "9fc494c0"),
    ("int4", "rtn"): ("80cc2987f564f58637ea", "2222423e", "f34b3fbf"),
    ("int4", "mse"): ("80cc1986f564f48527ea", "0000393e", "8b957cbf"),
    ("int3", "rtn"): ("a0cd8c3a9a3e2e35", "0000d03e", "d9891dbf"),
    ("int3", "mse"): ("a0cd8c3a9a3e323d", "0000c33e", "ba4101bf"),
    ("int2", "rtn"): ("a8920dd5590e", "abaa723f", "cba80cbf"),
    ("int2", "mse"): ("f8920dd5290e", "00003f3f", "56cef5be"),
}


def _hex(array: np.ndarray) -> str:
    return array.astype(array.dtype.newbyteorder("<")).tobytes().hex()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key", sorted(GOLDEN), ids=" ".join)
def test_bytes_of_groups(key: tuple[str, str, str], dtype: torch.dtype) -> None:
    quant_type, method, zero_points = key
    q = quantized(_WEIGHTS.to(dtype), group_spec(quant_type, 4, method, zero_points))
    assert (_hex(q.codes), _hex(q.scales), _hex(q.zero_points)) == GOLDEN[key]


@pytest.mark.parametrize("key", sorted(TENSOR_GOLDEN), ids=" ".join)
def test_bytes_of_one_scale_for_the_tensor(key: tuple[str, str]) -> None:
    q = quantized(_WEIGHTS, tensor_spec(key[0], key[1], "real"))
    assert (_hex(q.codes), _hex(q.scales), _hex(q.zero_points)) == TENSOR_GOLDEN[key]
