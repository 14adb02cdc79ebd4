"""Progress: a few plain lines in a log, a bar on a terminal."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import pytest

from arrowquant_dist.cli.progress import ProgressLines, shown_progress


@dataclass(frozen=True)
class Event:
    done_nbytes: int
    total_nbytes: int


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Run:
    """Events of a run on a clock that is set by hand."""

    out: io.StringIO = field(default_factory=io.StringIO)
    clock: Clock = field(default_factory=Clock)

    def play(self, *moments: tuple[float, int], total: int) -> list[str]:
        lines = ProgressLines(self.out, "quantize", self.clock)
        for now, done in moments:
            self.clock.now = now
            lines.on_event(Event(done, total))
        lines.finish()
        return self.out.getvalue().splitlines()


def test_a_short_run_prints_one_line() -> None:
    assert Run().play((0, 0), (1, 50_000_000), (2, 100_000_000), total=100_000_000) == [
        "quantize: 100.0 MB of 100.0 MB, 100.0 %, 50.0 MB/s"
    ]


def test_a_line_has_rate_and_time_left() -> None:
    lines = Run().play((0, 0), (10, 1_000_000_000), total=4_000_000_000)
    assert lines[0] == "quantize: 1.00 GB of 4.00 GB, 25.0 %, 100.0 MB/s, 30.00 s left"


def test_what_an_earlier_run_finished_does_not_count_in_the_rate() -> None:
    lines = Run().play((0, 3_000_000_000), (10, 3_500_000_000), total=4_000_000_000)
    assert "50.0 MB/s, 10.00 s left" in lines[0]


def test_a_run_of_a_day_prints_few_lines() -> None:
    moments = [(float(second), second) for second in range(0, 86_400, 2)]
    assert 50 < len(Run().play(*moments, total=86_400)) < 400


def test_nothing_to_do_is_all_done() -> None:
    assert Run().play((0, 0), total=0) == ["quantize: 0 B of 0 B, 100.0 %"]


def test_no_event_no_line() -> None:
    assert Run().play(total=5) == []


def test_a_failed_run_does_not_claim_a_last_line() -> None:
    out = io.StringIO()

    def fail() -> None:
        with shown_progress(out, "quantize") as on_event:
            on_event(Event(1, 2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert out.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with shown_progress(out, "quantize") as on_event:
        on_event(Event(0, 2_000_000))
        on_event(Event(2_000_000, 2_000_000))
    assert "100%" in out.getvalue()
    assert "2.0/2.0 MB" in out.getvalue()
