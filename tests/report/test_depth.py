"""The depth of a layer, told by its name."""

from __future__ import annotations

import pytest

from arrowquant_dist.report.depth import depth, role, short_role


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("model.layers.12.mlp.experts.5.up_proj.weight", 12),
        ("encoder.layer.0.attention.self.query.weight", 0),
        ("0.auto_model.encoder.layer.3.output.dense.weight", 3),
        ("transformer.h.7.attn.c_attn.weight", 7),
        ("blk.31.ffn_up.weight", 31),
        ("encoder.block.2.layer.1.DenseReluDense.wi.weight", 2),
        ("features.4.weight", 4),
        ("embeddings.word_embeddings.weight", None),
        ("layer_norm2.weight", None),
        ("", None),
    ],
)
def test_the_number_of_the_block_is_found(name: str, block: int | None) -> None:
    assert depth(name) == block


def test_layers_that_do_the_same_have_one_role() -> None:
    first, second = (role(f"model.layers.{i}.mlp.experts.{i + 3}.up_proj.weight") for i in (0, 11))
    assert first == second == "model.layers.*.mlp.experts.*.up_proj.weight"
    assert short_role("encoder.layer.*.attention.self.query.weight") == "attention.self.query"
    assert short_role("lm_head.weight") == "lm_head"
