"""Time and memory for opening and planning checkpoints with a great many layers, each in a process of its own.

Apart from their headers, which are in the page cache, the files are holes: weights are never read, so they take no
disk.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.benchmarks.table import Row, Table, at_most
from tests.benchmarks.timing import run_process

_PHASES = ("open", "plan", "to bytes", "from bytes")
_MIB = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Model:
    """A model.

    layers: number of layers, of `side` × 128 bfloat16 values each. files: number of files. scaled: each layer is float8
    codes with scales instead.
    """

    layers: int
    files: int
    side: int = 256
    scaled: bool = False

    @property
    def name(self) -> str:
        size = self.layers * self.side * 256 / 1e9
        kind = "float8 with scales" if self.scaled else "bf16"
        return f"{self.layers:,} layers in {self.files} files, {size:,.0f} GB, {kind}"


MODELS = (
    Model(200_000, 200),
    Model(200_000, 200, side=64 << 10),
    Model(100_000, 100),
    Model(100_000, 200, scaled=True),
)


def tables(runs: int, folder: str | None) -> Iterator[Table]:
    for index, model in enumerate(MODELS):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            write_model(Path(name), model)
            command = [sys.executable, "-m", "tests.benchmarks.planning", name]
            found = [run_process(command) for _ in range(runs)]
        seconds = [json.loads(run.output) for run in found]
        best = {phase: min(s[phase] for s in seconds) for phase in (*_PHASES, "planning", "all", "cpu")}
        rows = [Row(phase, best[phase], "s") for phase in _PHASES]
        rows.append(
            Row("plan, to bytes and back", best["planning"], "s", target=at_most(5) if index == 0 else None)
        )
        rows.append(Row("all of it", best["all"], "s"))
        rows.append(Row("CPU time of all of it", best["cpu"], "s"))
        peak = min(run.peak_nbytes for run in found) / _MIB
        rows.append(
            Row("peak memory of the process", peak, "MiB", target=at_most(500) if index == 0 else None)
        )
        rows.append(Row("of it idle, before the first header", min(s["idle"] for s in seconds), "MiB"))
        yield Table(f"Planning: {model.name}", tuple(rows))


def write_model(folder: Path, model: Model) -> None:
    for file in range(model.files):
        numbers = range(model.layers * file // model.files, model.layers * (file + 1) // model.files)
        header: dict[str, object] = {}
        stop = 0
        for number in numbers:
            name = f"model.layers.{number // 800}.mlp.experts.{number % 800}.down_proj.weight"
            for suffix, dtype, shape, itemsize in _tensors(model):
                nbytes = shape[0] * shape[1] * itemsize
                header[name + suffix] = {
                    "dtype": dtype,
                    "shape": shape,
                    "data_offsets": [stop, stop + nbytes],
                }
                stop += nbytes
        _write_holes(folder / f"model-{file + 1:05d}-of-{model.files:05d}.safetensors", header, stop)


def _tensors(model: Model) -> list[tuple[str, str, list[int], int]]:
    if not model.scaled:
        return [("", "BF16", [model.side, 128], 2)]
    return [("", "F8_E4M3", [model.side, 128], 1), ("_scale_inv", "F32", [-(-model.side // 128), 1], 4)]


def _write_holes(path: Path, header: dict[str, object], nbytes: int) -> None:
    text = json.dumps(header, separators=(",", ":")).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + nbytes)


def measure(folder: str) -> dict[str, float]:
    """Seconds of each phase, and CPU seconds of all of them; `idle`: MiB that the process had before the first one."""
    from arrowquant_dist.checkpoint.open import open_checkpoint
    from arrowquant_dist.config import QuantizationConfig, RunConfig
    from arrowquant_dist.machine import peak_memory_nbytes
    from arrowquant_dist.plan import make_plan
    from tests.plan.plan_bytes import read_again, written

    config = QuantizationConfig("int4", per_channel=False, mixed_precision_layers=["embed", "lm_head"])
    found = {"idle": peak_memory_nbytes() / _MIB, "cpu": 0.0}

    def timed(phase: str, call: Callable[[], T]) -> T:
        start, cpu = time.perf_counter(), time.process_time()
        result = call()
        found[phase], found["cpu"] = time.perf_counter() - start, found["cpu"] + time.process_time() - cpu
        return result

    checkpoint = timed("open", lambda: open_checkpoint(folder))
    plan = timed("plan", lambda: make_plan(checkpoint, config, RunConfig()))
    data = timed("to bytes", lambda: written(plan))
    if timed("from bytes", lambda: read_again(data)).fingerprint != plan.fingerprint:
        raise RuntimeError("the plan came back as another one")
    found["planning"] = sum(found[phase] for phase in _PHASES[1:])
    found["all"] = found["open"] + found["planning"]
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1])))
