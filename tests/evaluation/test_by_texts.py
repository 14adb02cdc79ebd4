"""The fewest bytes with which texts keep a quality."""

from __future__ import annotations

from pathlib import Path

import pytest

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, choose_by_texts, evaluate
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.evaluation import by_texts
from tests.evaluation.models import TEXTS, save_bert, save_llama


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(" ".join(text.split()) for text in TEXTS), encoding="utf-8")
    return str(path)


def test_the_texts_of_an_encoder_keep_the_cosine_and_the_same_command_tries_nothing_again(
    tmp_path: Path, texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = str(save_bert(tmp_path / "source")), str(tmp_path / "out")
    config = QuantizationConfig(min_quality=0.97, texts=texts)
    table = choose_by_texts(source, config, target=target)
    ArrowQuantizer(table).quantize(source, target)
    found = evaluate(source, target, texts).embeddings
    assert found is not None
    assert 0.97 <= found.cosine_mean < 0.99
    assert table.chosen_for is not None
    assert table.chosen_for["found"] == pytest.approx(found.cosine_mean, abs=1e-6)
    monkeypatch.setattr(by_texts, "_evaluated", lambda *_: pytest.fail("a step was tried again"))
    assert choose_by_texts(source, config, target=target) == table


def test_what_a_kind_of_model_does_not_have_is_refused(tmp_path: Path, texts: str) -> None:
    source = str(save_llama(tmp_path / "source"))
    with pytest.raises(InvalidConfig, match="is compared by its next tokens; use a percentage, such as 5%"):
        choose_by_texts(source, QuantizationConfig(min_quality=0.9, texts=texts))
