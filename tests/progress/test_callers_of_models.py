"""Progress of filling a model, for those who load it in a terminal or a notebook."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModel

from arrowquant_dist import ArrowQuantError, QuantizationConfig, load_model, load_sentence_transformer
from tests.evaluation.models import quantize, save_bert, save_sentence_model
from tests.progress.test_callers import in_ipython
from tests.terminals import terminal

CALLS: dict[str, Callable[[Path, Any], object]] = {
    "load_model": lambda made, asked: load_model(made / "bert-int8", AutoModel, progress=asked),
    "load_model with codes": lambda made, asked: load_model(
        made / "bert-int8", AutoModel, codes=True, progress=asked
    ),
    "load_sentence_transformer": lambda made, asked: load_sentence_transformer(
        made / "sentences-int8", progress=asked
    ),
}
EACH = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    quantize(save_bert(place / "bert"), place / "bert-int8", QuantizationConfig())
    quantize(save_sentence_model(place / "sentences"), place / "sentences-int8", QuantizationConfig())
    return place


@EACH
def test_a_terminal_shows_a_bar_unless_it_is_turned_off(
    call: Callable[[Path, Any], object], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(80, monkeypatch) as quiet:
        call(made, False)  # noqa: FBT003
    assert quiet.drawn == ""
    with terminal(80, monkeypatch) as screen:
        call(made, True)  # noqa: FBT003
    assert "load ━" in screen.drawn
    assert "100%" in screen.drawn
    assert " kB of " in screen.drawn


@EACH
def test_a_notebook_shows_a_bar_and_a_pipe_nothing(
    call: Callable[[Path, Any], object],
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    call(made, True)  # noqa: FBT003
    notebook = in_ipython(monkeypatch, SimpleNamespace(kernel=object()))
    call(made, True)  # noqa: FBT003
    [place] = notebook.shown
    assert repr(place[-1]).startswith("load: 100 %, ")
    assert capfd.readouterr() == ("", "")


@EACH
def test_what_is_no_function_is_refused_before_anything_is_opened(
    call: Callable[[Path, Any], object], made: Path
) -> None:
    with pytest.raises(ArrowQuantError, match="progress is the text 'yes'; give True, False, or a function"):
        call(made / "nowhere", "yes")
