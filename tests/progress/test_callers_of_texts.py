"""Progress of functions that run texts through a model, for those who call them in a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arrowquant_dist import (
    ArrowQuantError,
    DistillSettings,
    QuantizationConfig,
    calibrate,
    choose_by_texts,
    distill,
    evaluate,
)
from tests.evaluation.models import TEXTS, quantize, save_bert
from tests.terminals import terminal

INT2 = QuantizationConfig("int2", per_channel=False, group_size=16, symmetric=False)
CALLS: dict[str, tuple[Callable[[Path, Path, Any], object], str]] = {
    "evaluate": (
        lambda made, _, asked: evaluate(made / "source", made / "target", TEXTS, progress=asked),
        "reading the original",
    ),
    "calibrate": (
        lambda made, out, asked: calibrate(made / "source", out / "out", TEXTS, progress=asked),
        "part 1 of 4",
    ),
    "distill": (
        lambda made, out, asked: distill(
            *(made / "source", made / "target", out / "out", TEXTS),
            settings=DistillSettings(steps=2),
            progress=asked,
        ),
        "distill",
    ),
    "choose_by_texts": (
        lambda made, _, asked: choose_by_texts(
            made / "source",
            QuantizationConfig(min_quality=0.5, texts=str(made / "texts.txt")),
            progress=asked,
        ),
        "embedding with the dataset",
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bert")
    source = save_bert(place / "source")
    quantize(source, place / "target", INT2)
    (place / "texts.txt").write_text("\n".join(TEXTS))
    return place


@pytest.mark.parametrize("name", CALLS)
def test_a_terminal_shows_bars_unless_they_are_turned_off(
    name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, said = CALLS[name]
    with terminal(100, monkeypatch) as quiet:
        call(made, tmp_path / "quiet", False)  # noqa: FBT003
    assert quiet.drawn == ""
    with terminal(100, monkeypatch) as screen:
        call(made, tmp_path / "shown", True)  # noqa: FBT003
    assert said in screen.drawn
    assert "100%" in screen.drawn


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_function_is_refused(name: str, made: Path, tmp_path: Path) -> None:
    with pytest.raises(ArrowQuantError, match="progress is the text 'yes'; give True, False, or a function"):
        CALLS[name][0](made, tmp_path, "yes")
    assert [*tmp_path.iterdir()] == []
