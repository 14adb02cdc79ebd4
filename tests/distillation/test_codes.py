"""Latent codes begin as the dataset's codes, and the smallest step undoes nothing that a method has chosen."""

from __future__ import annotations

import numpy as np
import torch

from arrowquant_dist.config import QuantSpec
from arrowquant_dist.distillation.codes import TrainedCodes
from arrowquant_dist.tensor import quantize_layer

INT2 = QuantSpec("int2", per_channel=False, group_size=8, symmetric=False, method="mse")


def moved(codes: TrainedCodes, by: float) -> torch.Tensor:
    with torch.no_grad():
        codes.offsets.fill_(by)
        return codes.found()["codes"]


def test_codes_that_gptq_moved_stay_where_a_step_would_change_others() -> None:
    values = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)
    inputs = np.random.default_rng(1).standard_normal((64, 24)) @ np.random.default_rng(2).standard_normal(
        (24, 24)
    )
    hessian = (inputs.T @ inputs / 64).astype(np.float32)
    spec = QuantSpec("int2", per_channel=False, group_size=8, symmetric=False, method="gptq")
    bits = values.view(np.uint8).reshape(-1)
    stored = quantize_layer(bits, values.shape, "float32", spec, {"hessian": hessian}, "layer")
    codes = TrainedCodes(stored, torch.from_numpy(values))
    start = moved(codes, 0.0)
    scales, zeros = (part.reshape(16, 3, 1) for part in (stored.scales, stored.zero_points))
    latent = values.reshape(16, 3, 8) / scales + zeros
    rounded = torch.from_numpy(np.clip(np.rint(latent), -2, 1).reshape(16, 24)).to(torch.int8)
    were_moved = start != rounded
    assert 20 < were_moved.sum() < 300
    for by in (-0.3, 0.3):
        changed = moved(codes, by) != start
        assert not changed[were_moved].any()
        assert changed[~were_moved].sum() > 20


def test_codes_of_rounding_begin_where_the_original_lies() -> None:
    values = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)
    stored = quantize_layer(values.view(np.uint8).reshape(-1), values.shape, "float32", INT2, {}, "layer")
    codes = TrainedCodes(stored, torch.from_numpy(values))
    start = moved(codes, 0.0)
    scales, zeros = (part.reshape(16, 3, 1) for part in (stored.scales, stored.zero_points))
    latent = torch.from_numpy((values.reshape(16, 3, 8) / scales + zeros).reshape(16, 24))
    assert torch.equal(start, latent.round().clamp(-2, 1).to(torch.int8))
    near = (latent - start).abs() < 0.45
    for by in (-0.3, 0.3):
        expected = (latent + by).round().clamp(-2, 1).to(torch.int8)
        assert torch.equal(moved(codes, by)[near], expected[near])


def test_a_single_row_that_is_looked_up_has_sparse_gradients_of_its_codes_alone() -> None:
    """As of RoBERTa's token types: one scale for the tensor is no row of it."""
    values = np.random.default_rng(0).standard_normal((1, 24)).astype(np.float32)
    spec = QuantSpec("int8", per_channel=False, group_size=0, symmetric=True, method="rtn")
    stored = quantize_layer(values.view(np.uint8).reshape(-1), values.shape, "float32", spec, {}, "layer")
    codes = TrainedCodes(stored, torch.from_numpy(values))
    assert codes.form.has_one_scale
    torch.autograd.backward(codes.rows(torch.tensor([0])).sum())
    assert codes.offsets.grad is not None
    assert codes.log_scales.grad is not None
    assert (codes.offsets.grad.is_sparse, codes.log_scales.grad.is_sparse) == (True, False)
