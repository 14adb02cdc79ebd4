"""Names of layers that differ only in their block's number count as one name."""

from __future__ import annotations

import pytest

from arrowquant_dist.config.patterns import starred


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("model.layers.12.mlp.experts.5.up_proj.weight", "model.layers.*.mlp.experts.*.up_proj.weight"),
        (
            "0.auto_model.encoder.layer.3.output.dense.weight",
            "*.auto_model.encoder.layer.*.output.dense.weight",
        ),
        (
            "bert/encoder/layer_11/attention/self/query/kernel",
            "bert/encoder/layer_*/attention/self/query/kernel",
        ),
        ("unet_down_blocks_0_layers_1_proj.weight", "unet_down_blocks_*_layers_*_proj.weight"),
        ("blk.31.ffn_up.weight", "blk.*.ffn_up.weight"),
        ("features.4", "features.*"),
        (
            "encoder.block.2.layer.1.DenseReluDense.wi_0.weight",
            "encoder.block.*.layer.*.DenseReluDense.wi_0.weight",
        ),
        ("layer_norm2.weight", "layer_norm2.weight"),
        ("model.fc1.weight", "model.fc1.weight"),
    ],
)
def test_the_number_of_a_block_or_a_part_is_starred_and_no_other(name: str, alike: str) -> None:
    assert starred(name) == alike
