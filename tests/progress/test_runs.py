"""Progress of a run: a few plain lines in a log, a bar on a terminal."""

from __future__ import annotations

import fcntl
import io
import json
import re
import struct
import sys
import termios
from dataclasses import dataclass, field

import pytest

from arrowquant_dist.driver import Progress
from arrowquant_dist.progress.lines import JsonLines, ProgressLines
from arrowquant_dist.progress.rate import Bytes, RecentRate
from arrowquant_dist.progress.runs import shown_progress
from arrowquant_dist.progress.words import said_within
from tests.terminals import terminal

GB = 1_000_000_000


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
            lines.show(Bytes(done, total))
        lines.finish()
        return self.out.getvalue().splitlines()


def test_a_short_run_prints_one_line() -> None:
    assert Run().play((0, 0), (1, 50_000_000), (2, 100_000_000), total=100_000_000) == [
        "quantize: 100.0 MB of 100.0 MB, 100.0 %, 50.0 MB/s"
    ]


def test_a_line_has_rate_and_time_left() -> None:
    lines = Run().play((0, 0), (10, GB), total=4 * GB)
    assert lines[0] == "quantize: 1.00 GB of 4.00 GB, 25.0 %, 100.0 MB/s, 30 s left"


def test_a_run_also_tells_layers_and_who_is_at_work() -> None:
    out, clock = io.StringIO(), Clock()
    lines = ProgressLines(out, "quantize", clock)
    lines.show(Progress(0, 4 * GB, 0, 80, workers_alive=0))
    clock.now = 10
    lines.show(Progress(GB, 4 * GB, 20, 80, workers_alive=7))
    assert out.getvalue() == (
        "quantize: 1.00 GB of 4.00 GB, 25.0 %, 20 of 80 layers, 100.0 MB/s, 30 s left, 7 workers\n"
    )


def test_what_an_earlier_run_finished_does_not_count_in_the_rate() -> None:
    lines = Run().play((0, 3 * GB), (10, 3_500_000_000), total=4 * GB)
    assert "50.0 MB/s, 10 s left" in lines[0]


def test_the_time_left_is_in_whole_seconds_and_never_none() -> None:
    lines = Run().play((0, 0), (10, GB), (39.6, 3_960_000_000), total=4 * GB)
    assert "100.0 MB/s, 1 s left" in lines[-1]


def test_the_time_left_is_by_how_fast_it_goes_now() -> None:
    """An hour on one worker, then ten."""
    pace = RecentRate()
    for second in range(3600):
        pace.add(second, second * 100)
    for second in range(300):
        pace.add(3600 + second, 360_000 + second * 1000)
    assert pace.nbytes_per_second(3899) == pytest.approx(1000, rel=0.01)
    assert pace.seconds_left(3899, Bytes(659_000, 759_000)) == pytest.approx(100, rel=0.01)


def test_nothing_is_said_of_the_time_left_before_the_work_has_told_something() -> None:
    """Five seconds of it, and a hundredth of all."""
    pace = RecentRate()
    pace.add(0, 0)
    pace.add(4, 50)
    assert pace.seconds_left(4, Bytes(50, 1000)) is None
    pace.add(10, 60)
    assert pace.seconds_left(10, Bytes(60, 10_000)) is None
    pace.add(20, 100)
    assert pace.seconds_left(20, Bytes(100, 10_000)) == pytest.approx(1980)


def test_waiting_and_compiling_are_no_work() -> None:
    pace = RecentRate()
    for now in (0, 10, 60):
        pace.add(now, 700)
    pace.add(66, 1300)
    assert pace.nbytes_per_second(66) == 100
    assert pace.seconds_left(66, Bytes(1300, 2000)) == 7


def test_what_is_compiled_is_said_at_once_and_once() -> None:
    out, clock = io.StringIO(), Clock()
    lines = ProgressLines(out, "quantize", clock)
    for purpose in ("", "int4 by mse", "", "int4 by mse", "compression"):
        lines.show(Progress(0, GB, 0, 8, workers_alive=2, compiling=purpose))
    assert out.getvalue().splitlines() == [
        "quantize: compiling kernels for int4 by mse, once on a machine",
        "quantize: compiling kernels for compression, once on a machine",
    ]


def test_logs_for_machines_are_a_document_a_line_at_the_same_moments() -> None:
    out, clock = io.StringIO(), Clock()
    lines = JsonLines(out, "quantize", clock)
    lines.show(Progress(0, 4 * GB, 0, 80, workers_alive=0, compiling="int4 by mse"))
    clock.now = 10
    lines.show(Progress(GB, 4 * GB, 20, 80, workers_alive=7))
    compiling, progress = map(json.loads, out.getvalue().splitlines())
    assert compiling == {"event": "compiling", "command": "quantize", "kernels": "int4 by mse"}
    assert progress == {
        "event": "progress",
        "command": "quantize",
        "done_nbytes": GB,
        "total_nbytes": 4 * GB,
        "nbytes_per_second": 1e8,
        "seconds_left": 30.0,
        "done_layers": 20,
        "total_layers": 80,
        "workers": 7,
    }


def test_whoever_wants_quiet_hears_nothing() -> None:
    out = io.StringIO()
    with shown_progress(out, "quantize", "none") as show:
        show(Bytes(1, 2))
    assert out.getvalue() == ""


def test_events_that_come_rarely_still_make_a_rate() -> None:
    pace = RecentRate()
    for hour in range(4):
        pace.add(hour * 3600, hour * 36_000)
    assert pace.nbytes_per_second(3 * 3600) == 10


def test_a_rate_goes_down_while_nothing_happens() -> None:
    pace = RecentRate()
    pace.add(0, 0)
    pace.add(10, 1000)
    assert pace.nbytes_per_second(10) == 100
    assert pace.nbytes_per_second(100) == 10


def test_thousands_of_events_a_second_are_kept_as_a_few() -> None:
    pace = RecentRate()
    for event in range(100_000):
        pace.add(event / 1000, event)
    assert len(pace._samples) < 130
    assert pace.nbytes_per_second(99.999) == pytest.approx(1000)


def test_work_that_was_lost_is_no_progress() -> None:
    pace = RecentRate()
    for now, done in ((0, 0), (10, 1000), (20, 500)):
        pace.add(now, done)
    assert pace.nbytes_per_second(20) == 25
    pace.add(30, 0)
    assert pace.nbytes_per_second(30) is None
    assert pace.seconds_left(30, Bytes(0, 10)) is None


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
        with shown_progress(out, "quantize", "lines") as show:
            show(Bytes(1, 2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("room", "said"),
    [
        (80, "1.00 GB of 4.00 GB, 20 of 80 layers, 100.0 MB/s, 30 s left, 7 workers"),
        (66, "1.00 GB of 4.00 GB, 20 of 80 layers, 100.0 MB/s, 30 s left"),
        (48, "1.00 GB of 4.00 GB, 100.0 MB/s, 30 s left"),
        (40, "1.00 GB of 4.00 GB, 30 s left"),
        (20, "30 s left"),
    ],
)
def test_a_narrow_bar_drops_workers_layers_and_bytes_and_keeps_the_time_left(room: int, said: str) -> None:
    pace = RecentRate()
    pace.add(0, 0)
    pace.add(10, GB)
    assert said_within(room, Progress(GB, 4 * GB, 20, 80, workers_alive=7), pace, 10) == said


def test_a_bar_follows_a_window_that_gets_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(80, monkeypatch) as screen, shown_progress(sys.stderr, "quantize", "bar") as show:
        show(Progress(GB, 4 * GB, 20, 80, workers_alive=7))
        fcntl.ioctl(sys.stderr.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        show(Progress(2 * GB, 4 * GB, 40, 80, workers_alive=7))
    last = [line for line in re.split(r"[\r\n]+", screen.drawn) if "50%" in line][-1]
    assert len(last) <= 40
    assert "…" not in last


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with shown_progress(out, "quantize", "bar") as show:
        show(Progress(0, 2_000_000, 0, 9, 3, compiling="int2 by mse"))
        show(Progress(0, 2_000_000, 0, 9, 3))
        show(Progress(2_000_000, 2_000_000, 9, 9, 3))
    assert "100%" in out.getvalue()
    assert "left" not in out.getvalue()
    assert "2.00 MB of 2.00 MB, 9 of 9 layers" in out.getvalue()
    assert "3 workers" in out.getvalue()
