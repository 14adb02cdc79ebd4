"""File to file: a Llama checkpoint on disk, quantized by processes that take turns and have the same number of workers.

Seconds are those of the job alone, without the start and the imports of its process. Ours include reading the headers,
the report and the manifest.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.copying import COPY, copy_half, warm
from tests.benchmarks.gguf_files import gguf_job, llama_job, write_gguf
from tests.benchmarks.overview.figures import Comparison, Curve, Measured
from tests.benchmarks.overview.turns import FAILED, Job, in_turns
from tests.benchmarks.source import shapes, write_checkpoint
from tests.benchmarks.table import NOT_INSTALLED
from tests.benchmarks.timing import emptied, run_process, settle

PART = "quantize a file into a file"
WORKERS = 2
_ONE_JOB = Path(__file__).with_name("one_job.py")
_UNIT = "Mparam/s"
_MIB = 1 << 20
_GGUF_SLICE = 64 << 20  # values that gguf-py converts; its rate does not depend on how many
BLOCK_MIB = (1, 4, 16, 64, 256)
_OURS = {8: "int8", 4: "int4"}
_SCHEMES = {8: "W8A16", 4: "W4A16"}
_GGUF = {8: "Q8_0", 4: "Q4_0"}
_IMPORTS = {"llm-compressor": "llmcompressor", "auto-round": "auto_round"}


@dataclass(frozen=True, slots=True)
class Source:
    """A folder with a checkpoint and its config. count: number of its values. params: number that was asked for."""

    folder: Path
    params: int
    count: int

    @property
    def file(self) -> Path:
        return self.folder / "model.safetensors"


def made_source(folder: Path, params: int) -> Source:
    folder.mkdir()
    count = write_checkpoint(folder / "model.safetensors", params)
    found = shapes(params)
    words, width = found["lm_head.weight"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": found["model.layers.0.mlp.up_proj.weight"][0],
        "num_hidden_layers": sum("q_proj" in name for name in found),
        "num_attention_heads": max(1, width // 64),
        "num_key_value_heads": max(1, width // 512),
        "vocab_size": words,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return Source(folder, params, count)


def python_of(peer: str, pythons: Sequence[str]) -> str | None:
    """The first interpreter that has the peer, or None."""
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({_IMPORTS[peer]!r}) is None)"
    return next((p for p in pythons if subprocess.run([p, "-c", look], check=False).returncode == 0), None)


def version_of(peer: str, python: str) -> str:
    ask = f"from importlib.metadata import version; print(version({_IMPORTS[peer].replace('_', '-')!r}))"
    return subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()


def comparisons(source: Source, runs: int, pythons: Sequence[str], folder: Path) -> Iterator[Comparison]:
    """source: a checkpoint of 200,000,000 parameters or more, since llm-compressor's groups do not divide the columns
    of smaller ones. pythons: Python interpreters that may have peers."""
    for bits, config in _OURS.items():
        jobs, amounts, missing = _jobs(source, folder, bits, pythons)
        seconds = in_turns(jobs, runs)
        found = {name: Measured.of(amounts[name] / 1e6, taken) for name, taken in seconds.items()}
        mine = found.pop("ours")
        missing |= {peer: FAILED for peer in jobs if peer not in seconds}
        for peer in [*found, *missing]:
            yield Comparison(
                PART, f"{config}.yaml", _UNIT, mine, peer, found.get(peer), missing.get(peer, "")
            )


def _jobs(
    source: Source, folder: Path, bits: int, pythons: Sequence[str]
) -> tuple[dict[str, Job], dict[str, int], dict[str, str]]:
    """The jobs that take turns, how many values each converts, and why peers are missing."""
    part = min(_GGUF_SLICE, source.count) // 2048 * 2048
    out, as_gguf = folder / "out", folder / "model.gguf"
    jobs = {"ours": partial(_seconds, partial(_ours, _OURS[bits], {}), source, folder)}
    amounts: dict[str, int] = {}
    missing: dict[str, str] = {}
    for peer in _IMPORTS:
        python = python_of(peer, pythons)
        name = f"{peer} {_SCHEMES[bits]}, model-free"
        if python is None:
            missing[name] = NOT_INSTALLED
            continue
        name = f"{peer} {version_of(peer, python)} {_SCHEMES[bits]}, model-free"
        jobs[name] = partial(_seconds, partial(_of_peer, python, peer, _SCHEMES[bits]), source, folder)
    kind = _GGUF[bits]
    for name, job, amount in (
        (f"gguf-py {kind}", gguf_job(source.file, out, kind, part, WORKERS), part),
        (f"llama.cpp {kind}", llama_job(as_gguf, out, kind, WORKERS), source.count),
    ):
        if job is None:
            missing[name] = NOT_INSTALLED
            continue
        jobs[name], amounts[name] = partial(_called, job, source, folder), amount
    if f"llama.cpp {kind}" in jobs and not as_gguf.exists():
        write_gguf(source.file, as_gguf, source.params)
    jobs[COPY] = partial(_called, partial(copy_half, source.file, out, WORKERS), source, folder)
    return dict(jobs), {**dict.fromkeys(jobs, source.count), **amounts}, missing


def curves(params: int, runs: int, folder: Path) -> Iterator[Curve]:
    """Curves of ours alone: rate and peak memory over the size of the model, of workers, and of a row block."""
    models = [made_source(folder / f"of-{part}", params // part) for part in (64, 16, 4, 1)]
    yield from _curves("the model's size", "parameters", {m.count: (m, {}) for m in models}, runs, folder)
    largest = models[-1]
    workers = {k: (largest, {"workers": k}) for k in range(1, WORKERS + 1)}
    yield from _curves("workers", "workers", workers, runs, folder)
    blocks = {
        mib: (largest, {"block_bytes": f"{mib}MiB", "shard_bytes": f"{max(mib, 64)}MiB"}) for mib in BLOCK_MIB
    }
    yield from _curves("block_bytes", "MiB", blocks, runs, folder)


def _curves(
    what: str,
    across: str,
    settings: Mapping[int, tuple[Source, Mapping[str, Any]]],
    runs: int,
    folder: Path,
) -> Iterator[Curve]:
    """settings: for each position on the axis, a source and other settings of the run."""
    rate: dict[int, list[float]] = {at: [] for at in settings}
    peak: dict[int, list[float]] = {at: [] for at in settings}
    for counts in (False, *[True] * runs):
        for at, (source, run) in settings.items():
            said = _said(partial(_ours, "int8", run), source, folder)
            if counts:
                rate[at].append(source.count / 1e6 / said["seconds"])
                peak[at].append(said["peak_nbytes"] / _MIB)
    for title, unit, found in (("rate", _UNIT, rate), ("peak memory", "MiB", peak)):
        points = tuple((float(at), Measured(tuple(values))) for at, values in found.items())
        yield Curve(f"{title} by {what}", across, unit, points)


Command = Callable[[Path, Path], list[str]]  # given a source's folder and the output's


def _ours(config: str, run: Mapping[str, Any], source: Path, out: Path) -> list[str]:
    """The command of our job. config: name of a preset."""
    settings = json.dumps({"engine": "inline", "workers": WORKERS, **run})
    return [sys.executable, "-m", "tests.benchmarks.run_one", str(source), str(out), settings, config]


def _of_peer(python: str, peer: str, scheme: str, source: Path, out: Path) -> list[str]:
    return [python, str(_ONE_JOB), peer, str(source), str(out), str(WORKERS), scheme]


def _seconds(command: Command, source: Source, folder: Path) -> float:
    seconds: float = _said(command, source, folder)["seconds"]
    return seconds


def _said(command: Command, source: Source, folder: Path) -> Mapping[str, Any]:
    """The JSON that the job prints. Its source is in the page cache, and memory for what it writes is available."""
    warm(source.file)
    settle(2 * source.count)
    with emptied(folder / "out"):
        done = run_process(command(source.folder, folder / "out" / "made"))
        said: Mapping[str, Any] = json.loads(done.output)
        return said


def _called(job: Callable[[], object], source: Source, folder: Path) -> float:
    """The seconds of a job that is a function in this process, under the same conditions."""
    warm(source.file)
    settle(2 * source.count)
    with emptied(folder / "out"):
        start = time.perf_counter()
        job()
        return time.perf_counter() - start
