"""The values of a transposed expert are the decoded ones."""

from __future__ import annotations

import pytest
import torch

from arrowquant_dist import QuantizationConfig, quantize_tensor
from arrowquant_dist.config.choices import QuantType
from arrowquant_dist.export.compressed_tensors import turned
from tests.export.models import DTYPES


@pytest.mark.parametrize("quant_type", ["int8", "int4", "int3", "fp16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_turned_values_are_the_decoded_ones(
    quant_type: QuantType, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turned, "_VALUES_AT_ONCE", 40)  # runs of a few rows, the last one shorter
    values = torch.randn(7, 26, generator=torch.Generator().manual_seed(1)).to(DTYPES[dtype])
    rows = quantize_tensor(values, QuantizationConfig(quant_type, per_channel=False, group_size=8))
    packer = turned.TurnedValues(dtype, ("gate_proj", "up_proj"), 7)
    gate, up = packer.tensors("e.0.gate_up_proj", (7, 26))
    assert [(part.name, part.shape) for part in (gate, up)] == [
        ("e.0.gate_proj.weight", (13, 7)),
        ("e.0.up_proj.weight", (13, 7)),
    ]
    decoded = rows.dequantize(DTYPES[dtype])
    for tensor, wanted in enumerate(decoded.T.chunk(2)):
        data = torch.from_numpy(packer.pack(tensor, rows).copy())
        assert torch.equal(data.view(DTYPES[dtype]).reshape(13, 7), wanted)
