"""Makes the overview, from the first measurement to the files that show it."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from arrowquant_dist.machine import memory_nbytes, processor_name, usable_cpus
from tests.benchmarks.overview import accuracy, back, in_memory, to_disk
from tests.benchmarks.overview.figures import Comparison, Curve, Overview, Spot
from tests.benchmarks.overview.picture import picture
from tests.benchmarks.overview.words import markdown

PARAMS = 250_000_000
NAMES = ("overview.json", "overview.md", "overview.svg")


@dataclass(frozen=True, slots=True)
class Settings:
    """How large the measurements are.

    runs: number of rounds. side: side of the matrix in memory. params: parameters of the checkpoint. stored_nbytes:
    stored bytes of the exported dataset. texts: number of texts that ours is calibrated with; 0: ours is not
    calibrated. pythons: Python interpreters that may have peers, in addition to this one. folder: a folder on the disk
    to measure.
    """

    runs: int = 5
    side: int = 4096
    params: int = PARAMS
    stored_nbytes: int = 300_000_000
    texts: int = 500
    pythons: Sequence[str] = field(default_factory=tuple)
    folder: str | None = None


def measure(settings: Settings) -> Overview:
    """Measures everything, and prints to stderr which part it is at. Takes about half an hour if nothing else runs,
    and 8 bytes of disk per parameter."""
    pythons = [sys.executable, *settings.pythons]
    comparisons: list[Comparison] = []
    curves: list[Curve] = []
    spots: list[Spot] = []
    started = time.perf_counter()

    def tell(part: str) -> None:
        print(f"{time.perf_counter() - started:5.0f} s: {part}", file=sys.stderr, flush=True)

    tell(in_memory.PART)
    comparisons += in_memory.comparisons(settings.side, settings.runs)
    with tempfile.TemporaryDirectory(dir=settings.folder) as place:
        tell(to_disk.PART)
        source = to_disk.made_source(Path(place, "source"), settings.params)
        comparisons += to_disk.comparisons(source, settings.runs, pythons, Path(place))
        tell(back.LOADING)
        comparisons += back.loading(source, settings.runs, Path(place))
    with tempfile.TemporaryDirectory(dir=settings.folder) as place:
        tell(back.EXPORTING)
        comparisons += back.exports(settings.stored_nbytes, settings.runs, Path(place))
        tell(back.STREAMING)
        comparisons += back.streams(settings.params, settings.runs, pythons, Path(place))
    with tempfile.TemporaryDirectory(dir=settings.folder) as place:
        tell("curves")
        curves += to_disk.curves(settings.params, max(3, settings.runs // 2), Path(place))
    tell("accuracy by stored bytes")
    spots += accuracy.spots(settings.texts)
    tell("done")
    return Overview(
        date=datetime.now(UTC).date().isoformat(),
        machine=machine(),
        rounds=settings.runs,
        params=settings.params,
        versions={name: version(name) for name in ("arrowquant-dist", "torch", "pyarrow", "numba", "ray")},
        comparisons=tuple(comparisons),
        spots=tuple(spots),
        curves=tuple(curves),
    )


def machine() -> str:
    """A description of the machine: processor, number of cores that this process may use, memory, system."""
    memory = f"{memory_nbytes() / 2**30:.0f} GiB"
    cores = usable_cpus()
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{processor_name()}{_vectors()}, {cores} {'core' if cores == 1 else 'cores'}, {memory}, {system}"


def _vectors() -> str:
    """The widest vector instructions of the processor, since the name of a virtual one may say nothing about them;
    empty if Linux does not say."""
    try:
        flags = (
            Path("/proc/cpuinfo")
            .read_text(encoding="utf-8")
            .partition("\nflags")[2]
            .partition("\n")[0]
            .split()
        )
    except OSError:
        flags = []
    return next((name for flag, name in _VECTORS if flag in flags), "")


_VECTORS = (("amx_int8", " (AVX-512, AMX)"), ("avx512f", " (AVX-512)"), ("avx2", " (AVX2)"))


def write(overview: Overview, folder: Path) -> list[Path]:
    """Writes the figures as JSON, the table as Markdown and the picture as SVG, replacing earlier ones."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = (json.dumps(overview.to_dict(), indent=1) + "\n", markdown(overview), picture(overview))
    paths = [folder / name for name in NAMES]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def read(folder: Path) -> Overview:
    """Reads the overview that `write` left in the folder."""
    return Overview.from_dict(json.loads((folder / NAMES[0]).read_text(encoding="utf-8")))
