"""One block has its weights in memory, however many there are: counted by what is filled, not by a clock."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from arrowquant_dist import QuantizationConfig, calibrate
from arrowquant_dist.models.chain import Chain
from tests.evaluation.models import TEXTS, VOCABULARY, save

INT4 = QuantizationConfig("int4", per_channel=False, group_size=16)


def save_deep(folder: Path, blocks: int) -> Path:
    torch.manual_seed(7)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": VOCABULARY}
    return save(BertModel(BertConfig(num_hidden_layers=blocks, **sizes)), folder)


def held(chain: Chain) -> int:
    """Bytes that the chain's tensors have in memory; one value that stands for all of a tensor is none."""
    storages = {slot.tensor.untyped_storage().data_ptr(): slot.tensor for slot in chain.slots}
    return sum(t.untyped_storage().nbytes() for t in storages.values() if t.untyped_storage().nbytes() > 8)


def most_held(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, config: QuantizationConfig | None
) -> int:
    most, own = 0, Chain.fill

    def counting(self: Chain, part: int) -> None:
        nonlocal most
        own(self, part)
        most = max(most, held(self))

    with monkeypatch.context() as patch:
        patch.setattr(Chain, "fill", counting)
        calibrate(source, out, [*TEXTS[:6]], quantize=config)
    return most


@pytest.mark.parametrize("config", [None, INT4], ids=["one path", "two paths"])
def test_what_is_filled_at_a_time_does_not_grow_with_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: QuantizationConfig | None
) -> None:
    few, many = (
        most_held(save_deep(tmp_path / f"{n}", n), tmp_path / f"out{n}", monkeypatch, config) for n in (4, 20)
    )
    assert few == many
    assert few < 4 * (VOCABULARY + 512) * 32 + 40_000  # the embeddings, which are larger than a block here
