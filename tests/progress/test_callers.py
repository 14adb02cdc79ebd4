"""Progress for callers of functions: drawn where somebody sees it, and reported to those who ask for it."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from arrowquant_dist import (
    ArrowQuantError,
    ArrowQuantizer,
    ExportOptions,
    QuantizationConfig,
    RunConfig,
    export_dataset,
)
from arrowquant_dist.progress.callers import told_to
from arrowquant_dist.progress.forms import callers_form
from arrowquant_dist.progress.notebook import Bars
from arrowquant_dist.progress.runs import shown_bytes
from arrowquant_dist.progress.steps import shown_steps
from arrowquant_dist.texts.steps import TextsStep
from arrowquant_dist.verify import verify
from tests.sources import random_weights, save_checkpoint
from tests.terminals import terminal

INLINE = RunConfig(engine="inline", workers=1)
Call = Callable[..., object]  # with a folder, and `progress`


def quantize(folder: Path, *, progress: Any) -> object:
    return ArrowQuantizer(QuantizationConfig(), INLINE).quantize(
        folder / "source", folder / "target", progress=progress
    )


def export(folder: Path, *, progress: Any) -> object:
    return export_dataset(folder / "made", folder / "out", ExportOptions(), INLINE, progress=progress)


def verified(folder: Path, *, progress: Any) -> object:
    return verify(folder / "made", progress=progress)


CALLS = pytest.mark.parametrize(
    ("call", "verb"), [(quantize, "quantize"), (export, "export"), (verified, "verify")]
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = save_checkpoint(tmp_path / "source", random_weights(2, 8, 32, torch.float32))
    ArrowQuantizer(QuantizationConfig(), INLINE).quantize(source, tmp_path / "made")
    return tmp_path


@dataclass
class Notebook:
    """Stands in for IPython in a notebook: what is displayed, and what it was replaced by."""

    shown: list[list[Any]] = field(default_factory=list)

    def display(self, thing: Any, *, display_id: bool) -> Any:
        assert display_id
        place = [thing]
        self.shown.append(place)
        return SimpleNamespace(update=place.append)


def in_ipython(patch: pytest.MonkeyPatch, shell: object) -> Notebook:
    notebook = Notebook()
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.__dict__["get_ipython"] = lambda: shell
    display.__dict__["display"] = notebook.display
    patch.setitem(sys.modules, "IPython", ipython)
    patch.setitem(sys.modules, "IPython.display", display)
    return notebook


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    return in_ipython(monkeypatch, SimpleNamespace(kernel=object()))


@CALLS
def test_a_terminal_shows_a_bar_unless_it_is_turned_off(
    call: Call, verb: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(80, monkeypatch) as quiet:
        call(folder, progress=False)
    assert quiet.drawn == ""
    for made in ("target", "out"):
        shutil.rmtree(folder / made, ignore_errors=True)
    with terminal(80, monkeypatch) as screen:
        call(folder, progress=True)
    assert f"{verb} ━" in screen.drawn
    assert "100%" in screen.drawn


@CALLS
def test_a_notebook_shows_a_bar_in_one_place_of_its_output(
    call: Call, verb: str, folder: Path, notebook: Notebook
) -> None:
    call(folder, progress=True)
    [place] = notebook.shown
    last = place[-1]._repr_html_()
    assert f"<span>{verb}</span>" in last
    assert '<progress value="1.0000" max="1">' in last
    assert repr(place[-1]).startswith(f"{verb}: 100 %, ")


@CALLS
def test_nothing_is_shown_where_nobody_looks(
    call: Call, verb: str, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_ipython(monkeypatch, SimpleNamespace())  # IPython as a program on a pipe has no kernel
    call(folder, progress=True)
    assert capfd.readouterr() == ("", "")


@CALLS
def test_a_function_is_called_and_nothing_is_drawn(
    call: Call, verb: str, folder: Path, notebook: Notebook
) -> None:
    told: list[Any] = []
    call(folder, progress=lambda *event: told.append(event))
    assert told
    assert notebook.shown == []


@CALLS
def test_what_is_no_function_is_refused_before_anything_is_done(call: Call, verb: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(ArrowQuantError, match="progress is the text 'yes'; give True, False, or a function"):
        call(folder, progress="yes")
    assert sorted(folder.rglob("*")) == before


def test_a_run_that_was_done_before_leaves_no_bar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize(folder, progress=False)
    with terminal(80, monkeypatch) as screen:
        quantize(folder, progress=True)
    assert "%" not in screen.drawn.rpartition("\r")[2]


def test_a_stream_that_is_no_terminal_or_no_stream_at_all_shows_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, io.StringIO(), closed, object()):
        monkeypatch.setattr(sys, "stderr", stream)
        assert callers_form() == "none"


def test_what_is_printed_meanwhile_goes_where_it_was_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose output is a file has its progress on the terminal and its results in the file."""
    file = io.StringIO()
    with terminal(80, monkeypatch) as screen, monkeypatch.context() as inside:
        inside.setattr(sys, "stdout", file)
        with told_to(progress=True, drawing=shown_bytes, verb="verify") as told:
            assert told is not None
            told(1, 2)
            print("a result")  # noqa: T201
    assert file.getvalue() == "a result\n"
    assert "a result" not in screen.drawn


def test_a_notebook_has_a_bar_a_step_and_names_are_escaped(notebook: Notebook) -> None:
    with told_to(progress=True, drawing=shown_steps, verb="evaluate") as told:
        assert told is not None
        told(TextsStep("reading the original", 5, 10, "bytes"))
        told(TextsStep("<b>embedding</b>", 1, 4, "texts"))
    [place] = notebook.shown
    page = place[-1]._repr_html_()
    assert page.count("<progress") == 2
    assert "&lt;b&gt;embedding&lt;/b&gt;" in page
    assert repr(place[-1]).splitlines() == [
        "reading the original: 50 %, 5 B of 10 B",
        "<b>embedding</b>: 25 %, 1 of 4 texts",
    ]


def test_thousands_of_events_are_drawn_five_times_a_second(notebook: Notebook) -> None:
    now = [0.0]
    bars = Bars(lambda: now[0])
    for event in range(1000):
        now[0] = event / 1000
        bars.show("verify", event / 1000, "")
    bars.finish()
    [place] = notebook.shown
    assert 5 <= len(place) <= 7
    assert repr(place[-1]) == "verify: 100 %"
