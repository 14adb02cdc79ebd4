from __future__ import annotations

import numpy as np

from tests.kernels.digests import floats_to_halves, halves_to_floats


def test_every_float16_is_read_as_it_is() -> None:
    halves, floats = halves_to_floats()
    np.testing.assert_array_equal(floats, halves.astype(np.float32))


def test_float16_is_rounded_half_to_even_and_never_to_inf() -> None:
    floats, halves = floats_to_halves()
    np.testing.assert_array_equal(halves, np.clip(floats, -65504, 65504).astype(np.float16))


def test_bfloat16_is_rounded_half_to_even_and_never_to_inf() -> None:
    import torch

    from arrowquant_dist.tensor import QuantizedTensor

    top = float(np.finfo(np.float32).max)
    high = (np.arange(0x7F80, dtype=np.uint32) << 16).view(np.float32)
    floats = np.concatenate([high, (high.view(np.uint32) | 0x8000).view(np.float32), -high, [top, -top]])
    floats = np.concatenate(
        [floats, np.nextafter(floats, np.float32(0.0)), np.nextafter(floats, np.float32(top))]
    )
    floats = floats.astype(np.float32)
    ones = np.ones(floats.size, np.uint8)
    q = QuantizedTensor((floats.size, 1), "float32", "int8", ones, floats, np.empty(0, np.float32), 0, 0)
    limit = torch.finfo(torch.bfloat16).max
    expected = torch.from_numpy(floats).clamp(-limit, limit).to(torch.bfloat16).view(torch.int16).numpy()
    np.testing.assert_array_equal(q.values("bfloat16")[:, 0].view(np.int16), expected)
