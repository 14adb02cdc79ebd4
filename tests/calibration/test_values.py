"""What calibrate() writes equals what hooks on a plain forward pass of transformers give and, for two paths, what the
formulas give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BertForMaskedLM, BertModel

from arrowquant_dist import calibrate
from tests.calibration.reference import inputs_of, mean_product, read
from tests.evaluation.models import TEXTS, save_bert, save_llama, save_masked_bert


@pytest.mark.parametrize(
    ("save", "kind"),
    [(save_llama, AutoModelForCausalLM), (save_bert, BertModel), (save_masked_bert, BertForMaskedLM)],
)
def test_a_hessian_is_the_mean_product_of_what_a_layer_is_given(tmp_path: Path, save, kind) -> None:  # type: ignore[no-untyped-def]
    source = save(tmp_path / "source")
    model = kind.from_pretrained(source, dtype=torch.float32).eval()
    found = calibrate(source, tmp_path / "out", [*TEXTS])
    tensors, expected = read(tmp_path / "out"), inputs_of(model, source, TEXTS)
    tied = {"lm_head.weight", "cls.predictions.decoder.weight"} & {
        name for name in expected if f"{name}.hessian" not in tensors
    }
    assert len(expected) > 10
    for name, inputs in expected.items():
        if inputs.ndim == 1:
            rows = model.get_parameter(name).shape[0]
            counts = np.bincount(inputs.astype(int), minlength=rows)
            assert tensors[f"{name}.counts"].tolist() == counts.tolist(), name
        elif name not in tied:
            hessian = mean_product(inputs, inputs)
            np.testing.assert_allclose(
                tensors[f"{name}.hessian"], hessian, atol=3e-5 * np.abs(hessian).max(), err_msg=name
            )
    assert {layer.name: layer.tokens for layer in found.layers if layer.parts == ("hessian",)} == {
        name: len(inputs) for name, inputs in expected.items() if inputs.ndim > 1 and name not in tied
    }
    assert found.unseen == ()
