"""Progress of an evaluation or a calibration: a bar per step on a terminal, a few plain lines in a log."""

from __future__ import annotations

import io
import re

from arrowquant_dist.progress.steps import StepLines, shown_steps
from arrowquant_dist.texts.steps import TextsStep


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_a_step() -> None:
    out = Terminal()
    with shown_steps(out, "evaluate", "bar") as show:
        for done in (0, 3, 5):
            show(TextsStep("comparing next tokens", done, 5, "texts"))
        show(TextsStep("embedding", 1, 4, "texts"))
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).splitlines()[-2:]
    assert [line.split("\u2501")[0].strip() for line in last] == ["comparing next tokens", "embedding"]
    assert ["100%" in line for line in last] == [True, False]


def test_a_step_is_told_when_it_begins_now_and_then_and_when_it_is_done() -> None:
    out, clock = io.StringIO(), [0.0]
    lines = StepLines(out, lambda: clock[0])
    for at, done in ((0.0, 1), (5.0, 2), (11.0, 3), (12.0, 4), (13.0, 5)):
        clock[0] = at
        lines.show(TextsStep("comparing next tokens", done, 5, "texts"))
    lines.show(TextsStep("reading the dataset", 0, 2_000_000, "bytes"))
    assert out.getvalue().splitlines() == [
        "evaluate: comparing next tokens, 1 of 5 texts",
        "evaluate: comparing next tokens, 3 of 5 texts",
        "evaluate: comparing next tokens, 5 of 5 texts",
        "evaluate: reading the dataset, 0 B of 2.00 MB",
    ]
