"""Memory of the workers' processes over the time of the run."""

from __future__ import annotations

from arrowquant_dist.errors import counted
from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.reduce.memory import MemorySeries
from arrowquant_dist.reduce.timeline import Timeline
from arrowquant_dist.report import text
from arrowquant_dist.report.pictures.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    Scale,
    across,
    called,
    plain,
    scale,
    time_axis,
    upwards,
)
from arrowquant_dist.report.pictures.svg import Picture, dot, drawing, line, polyline, words

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_TONES = 6  # line-0 to line-5
_NEAR = 2.5  # times the largest peak; a bound above that is only written, not drawn
_LETTERS = 36


def memory_over_time(report: ReportFigures) -> Picture | None:
    """Memory over time, with a line for each process or for the largest of several; None if nothing is known of it."""
    timeline = report.timeline
    if timeline is None or not timeline.memory:
        return None
    bound = timeline.worker_memory_nbytes
    most = max(max(series.peak_nbytes) for series in timeline.memory)
    limit = bound * max(series.workers for series in timeline.memory) if bound is not None else None
    is_near = limit is not None and limit <= _NEAR * most
    size, unit = next((one for one in _UNITS if most >= one[0]), _UNITS[-1])
    along, units = time_axis(timeline.seconds, LEFT, RIGHT)
    up = scale([0, most / size, *([limit / size] if limit is not None and is_near else [])], BOTTOM, TOP + 8)
    parts = [upwards(up, plain), across(along, plain), called(f"{units} since the run began", unit)]
    if limit is not None and is_near:
        at = up.at(limit / size)
        parts += [line(LEFT, at, RIGHT, at, "bound"), words(RIGHT, at + 13, "bound", "axis", "end")]
    for number, series in enumerate(timeline.memory):
        parts.append(_drawn(series, f"line-{number % _TONES}", timeline, along, up, size))
    title = "Memory over time"
    legend = tuple((f"line-{i % _TONES}", _name(series)) for i, series in enumerate(timeline.memory))
    return Picture(
        title, drawing(title, HEIGHT, parts, f"at most {text.nbytes(most)}"), legend, _caption(timeline)
    )


def _drawn(series: MemorySeries, tone: str, timeline: Timeline, along: Scale, up: Scale, size: float) -> str:
    xs = [along.at(along.high * min(max(at / timeline.seconds, 0.0), 1.0)) for at in series.seconds]
    peaks = [up.at(peak / size) for peak in series.peak_nbytes]
    steps = [(xs[0], peaks[0])]
    for x, y in zip(xs[1:], peaks[1:], strict=True):
        steps += [(x, steps[-1][1]), (x, y)]
    known = [
        (x, up.at(nbytes / size), nbytes, at)
        for x, at, nbytes in zip(xs, series.seconds, series.resident_nbytes, strict=True)
        if nbytes is not None
    ]
    marks = [
        dot(x, y, 2.0, tone, f"{series.name}: {text.nbytes(nbytes)} at {text.seconds(at)}".removeprefix(": "))
        for x, y, nbytes, at in known
    ]
    if len(steps) == 1:
        steps = [(max(LEFT, xs[0] - 6), peaks[0]), *steps]
    traces = [polyline(steps, f"trace peak {tone}")]
    if len(known) > 1:
        traces.append(polyline([(x, y) for x, y, *_ in known], f"trace {tone}"))
    return "".join((*traces, *marks))


def _name(series: MemorySeries) -> str:
    name = text.shortened_word(series.name, _LETTERS)
    if series.processes == 1:
        return name
    of = f"the largest of {counted(series.processes, 'process', 'processes')}"
    return f"{name}: {of}" if name else of


def _caption(timeline: Timeline) -> str:
    said = ["Dots: memory in use when a shard was done. Dashed line: the peak of the process until then."]
    series = timeline.memory
    if any(None in one.resident_nbytes for one in series):
        said = [
            "Dashed line: the peak of the process until a shard was done. The system did not report the memory in use."
        ]
    threads = max(one.workers for one in series)
    if threads > 1:
        said.append(f"{counted(threads, 'worker')} share a process, possibly with the driver.")
    if timeline.worker_memory_nbytes is not None:
        bound = text.nbytes(timeline.worker_memory_nbytes)
        alone = " if it has a process of its own" if threads > 1 else ""
        said.append(f"The plan's bound is {bound} a worker{alone}.")
    if timeline.nodes > 1:
        said.append("The times of a node are those of its own clock.")
    return " ".join(said)
