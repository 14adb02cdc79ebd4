"""Workers and their shards over the time of the run: what each worker did when, and where workers waited."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from arrowquant_dist.errors import counted
from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.reduce.timeline import Timeline, WorkerLane
from arrowquant_dist.report import text
from arrowquant_dist.report.pictures.axes import RIGHT, across, plain, time_axis
from arrowquant_dist.report.pictures.svg import Picture, area, box, drawing, stripes, words

_PHASES = ("compile", "read", "quantize", "write")  # in this order within a bar; in truth they alternate
_OTHER = "other"
_LEFT, _HEADING = 78.0, 17.0
_LEAST_ROW, _LARGEST_ROW, _ROOM, _FREE = 14.0, 26.0, 130.0, 4.0  # heights: of a lane, of all, between two
_PROFILE = 46.0  # height of the curve of all workers
_LETTERS, _NODE_LETTERS = 11, 50
_LEAST, _GAP = 0.8, 0.6  # least width of a bar, and room after a bar that is wide enough
_NOT_RECORDED = (
    "This report does not say when shards were made and how much memory that took: the release that made the dataset "
    "did not record it."
)
_ALL_BEFORE = "Every shard was finished before this run, so there is nothing to draw over time."

_Along = Callable[[float], float]  # seconds since the run began → place on the picture


def why_untimed(report: ReportFigures) -> str:
    """A sentence that says why there are no pictures over time; empty if there are some."""
    if report.timeline is None:
        return _NOT_RECORDED
    return "" if report.timeline.lanes else _ALL_BEFORE


def shards_over_time(report: ReportFigures) -> Picture | None:
    """A lane for each worker, with the lanes of a node together, and a bar for each shard. None if it is not known when
    shards were made."""
    timeline = report.timeline
    if timeline is None or not timeline.lanes:
        return None
    along, unit = time_axis(timeline.seconds, _LEFT, RIGHT)

    def place(at: float) -> float:
        return along.at(along.high * min(max(at / timeline.seconds, 0.0), 1.0))

    parts, y = _profile(timeline, place)
    row = min(max(_ROOM / len(timeline.lanes), _LEAST_ROW), _LARGEST_ROW)
    height = row - _FREE
    bars: list[_Bar] = []
    for node, own in groupby(timeline.lanes, key=lambda lane: lane.node):
        parts.append(words(4, y + 12, text.shortened_word(node, _NODE_LETTERS)))
        y += _HEADING
        for lane, label in _labelled([*own], timeline):
            parts.append(words(_LEFT - 6, y + height / 2 + 4, label, "axis", "end"))
            parts.append(box(_LEFT, y, RIGHT - _LEFT, height, "idle"))
            bars += _bars(lane, y, place)
            y += row
    used = [phase for phase in (*_PHASES, _OTHER) if any(bar.widths.get(phase) for bar in bars)]
    parts += [stripes(_spans(bars, phase, height), height, f"phase-{phase}") for phase in used]
    parts += [box(bar.left, bar.top, bar.right - bar.left, height, "shard", bar.said) for bar in bars]
    parts += [across(along, plain, y), words(RIGHT, y + 32, f"{unit} since the run began", "axis", "end")]
    title = "Workers and shards over time"
    of = f"{counted(timeline.shards, 'shard')} by {counted(timeline.workers, 'worker')}"
    figures = f"{of} in {text.seconds(timeline.seconds)}"
    legend = tuple((f"phase-{phase}", phase) for phase in used)
    return Picture(title, drawing(title, y + 38, parts, figures), legend, _caption(report, timeline))


@dataclass(frozen=True, slots=True)
class _Bar:
    """A bar in a lane. widths: {phase: its width}, in the order of the phases; the rest of the bar, at the right, is
    time in which the worker waited. said: text that is shown when the mouse points at the bar."""

    left: float
    right: float
    top: float
    widths: dict[str, float]
    said: str


def _bars(lane: WorkerLane, top: float, place: _Along) -> Iterable[_Bar]:
    for i, (start, stop) in enumerate(zip(lane.start_seconds, lane.stop_seconds, strict=True)):
        left = min(place(start), RIGHT - _LEAST)
        right = max(place(stop), left + _LEAST)
        right -= _GAP if right - left > 4 * _GAP else 0.0
        phases = {phase: lane.phase_seconds[phase][i] for phase in _PHASES if phase in lane.phase_seconds}
        busy = max(lane.bar_seconds[i], sum(phases.values()))
        whole = max(busy, stop - start)
        every = {**phases, _OTHER: busy - sum(phases.values())}
        scale = (right - left) / whole if whole else 0.0
        widths = {phase: seconds * scale for phase, seconds in every.items()}
        yield _Bar(left, right, top, widths, _told(lane, i, every))


def _spans(bars: Iterable[_Bar], phase: str, height: float) -> Iterable[tuple[float, float, float]]:
    for bar in bars:
        left = bar.left
        for name, width in bar.widths.items():
            if name == phase and width >= 0.05:
                yield left, min(left + width, bar.right), bar.top + height / 2
            left += width


def _told(lane: WorkerLane, i: int, phases: dict[str, float]) -> str:
    count = lane.bar_shards[i]
    what = (
        f"shard {lane.first_shard[i]}"
        if count == 1
        else f"{counted(count, 'shard')} from {lane.first_shard[i]} on"
    )
    spent = ", ".join(f"{phase} {text.seconds(seconds)}" for phase, seconds in phases.items() if seconds)
    begin = text.seconds(lane.start_seconds[i])
    return f"{what}, begun at {begin}: {text.seconds(lane.bar_seconds[i])} ({spent}); {lane.worker}"


def _labelled(lanes: Sequence[WorkerLane], timeline: Timeline) -> Iterable[tuple[WorkerLane, str]]:
    """Lanes with their labels: the id of the process, and a number for the threads of the same process."""
    processes = {lane.worker for lane in timeline.lanes}
    seen: dict[str, int] = {}
    for lane in lanes:
        seen[lane.worker] = number = seen.get(lane.worker, 0) + 1
        name = text.shortened_word(lane.worker.rpartition("/")[2], _LETTERS)
        is_alone = sum(other.worker == lane.worker for other in lanes) == 1
        if len(processes) == 1:
            yield lane, f"worker {number}"
        else:
            yield lane, name if is_alone else f"{name} · {number}"


def _profile(timeline: Timeline, place: _Along) -> tuple[list[str], float]:
    """A curve of the number of workers at work, and the height at which the lanes begin. No curve if all have lanes."""
    if timeline.workers == len(timeline.lanes) or not timeline.at_work:
        return [], 0.0
    most, bottom = max(1.0, *timeline.at_work), _HEADING + _PROFILE
    step = timeline.seconds / len(timeline.at_work)
    corners = [
        (place((i + side) * step), bottom - _PROFILE * max(0.0, count) / most)
        for i, count in enumerate(timeline.at_work)
        for side in (0, 1)
    ]
    parts = [
        words(4, 12, f"workers at work, of {timeline.workers}"),
        words(_LEFT - 6, _HEADING + 9, f"{most:.0f}", "axis", "end"),
        words(_LEFT - 6, bottom, "0", "axis", "end"),
        box(_LEFT, _HEADING, RIGHT - _LEFT, _PROFILE, "idle"),
        area([(_LEFT, bottom), *corners, (RIGHT, bottom)], "stored"),
    ]
    return parts, bottom + 6


def _caption(report: ReportFigures, timeline: Timeline) -> str:
    said = [
        "A bar is a shard. Its colours show how long each phase took in total; in truth the phases alternate. Before "
        "the first bars, the run is planned and workers start. Between bars, a worker waits, or makes an attempt that "
        "does not count."
    ]
    if timeline.workers > len(timeline.lanes):
        half = len(timeline.lanes) // 2
        said.append(
            f"Of {counted(timeline.workers, 'worker')}, the {half} that worked longest and the {half} that worked "
            "least are shown."
        )
    if sum(map(len, (lane.bar_shards for lane in timeline.lanes))) < sum(
        lane.shards for lane in timeline.lanes
    ):
        said.append("A bar may stand for several shards.")
    if timeline.nodes > 1:
        said.append("The times of a node are those of its own clock.")
    if timeline.moved_nodes:
        of = counted(timeline.moved_nodes, "node")
        by = text.seconds(timeline.moved_seconds)
        said.append(f"The times of {of} were outside of the run and were moved into it, by up to {by}.")
    if timeline.cut_shards:
        said.append(
            f"Drawn only from the beginning of the run: {counted(timeline.cut_shards, 'shard')} that began before it."
        )
    earlier = len(report.run.resumed_shards)
    if earlier:
        said.append(f"Not drawn: {counted(earlier, 'shard')} of earlier runs.")
    idle = report.run.workers - timeline.workers
    if idle > 0:
        said.append(f"{idle} of {counted(report.run.workers, 'worker')} made no shard.")
    return " ".join(said)
