"""Time and memory of exports, next to a copy of the bytes that they write: on local disk, and from bucket to bucket on
a real S3 server. Each is a process of its own; they take turns, and the median counts.

Stored codes are compressed and have checksums; a copy neither decompresses nor verifies them. What that costs on this
machine is measured as well, by a program that reads, decompresses, verifies, writes and hashes, and does nothing else
(export_one.py): an export that reaches 0.9 of its rate is at the machine's limit, however fast the copy is. In GGUF,
codes are in other places, so another such program also moves them there."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from transformers import LlamaConfig

from arrowquant_dist.config import Storage, load_config
from arrowquant_dist.driver import quantize
from arrowquant_dist.storage.open import open_store
from tests.benchmarks.big import llama, write_checkpoint
from tests.benchmarks.minilm import CONFIGS
from tests.benchmarks.table import Row, Table, Target, at_most, ratio_of
from tests.benchmarks.timing import emptied, run_process
from tests.benchmarks.uploading import upload
from tests.export.gguf.models import byte_pairs
from tests.servers.seaweedfs import SeaweedFS

NBYTES = 2_000_000_000  # stored
WORKERS = 2
CODES_AS_THEY_ARE = ("compressed-tensors", "gguf")
DECODED = "safetensors"
FORMATS = (*CODES_AS_THEY_ARE, DECODED)
PLACES = ("disk", "bucket")
BUDGETS = (64, 256, 1024)  # MiB
_OF_BUCKETS = (128, 256, 1024)  # larger, since three parts of an upload take another 15 MiB at least
_BEYOND = 64  # MiB
_LEAST_RATE = 0.7  # of the rate of the copy
_LEAST_OF_LIMIT = 0.9
_LEAST_WORK = {
    "decompress": "read, decompress, verify, write, hash",
    "pack": "read, decompress, verify, pack, write, hash",
}
_ROW_BLOCK_NBYTES = 16 << 20
_HIDDEN, _INNER, _WORDS = 2048, 5632, 32000
_BLOCK_NBYTES = (4 * _HIDDEN * _HIDDEN + 3 * _HIDDEN * _INNER) * (
    4 / 8 + 4 / 128
)  # int4 with a scale per 128 values
_KEPT_NBYTES = 2 * 2 * _WORDS * _HIDDEN

Job = Mapping[str, Any]  # a job of export_one
Emptied = Callable[[str], AbstractContextManager[str]]  # gives a new place of this name, removed afterwards


@dataclass(slots=True)
class _Found:
    """Measurements of a job.

    seconds, cpu_seconds, process_seconds: seconds of the job, CPU seconds of the job, and seconds of its process, one
    of each per round. peak_nbytes: largest memory above that of the process before the job.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    process_seconds: list[float] = field(default_factory=list)
    peak_nbytes: int = 0


def tables(
    nbytes: int,
    runs: int,
    folder: str | None,
    formats: Sequence[str] = FORMATS,
    places: Sequence[str] = PLACES,
) -> Iterator[Table]:
    """nbytes: stored bytes of the dataset. If a folder is given, the dataset stays there for the next time. Making it
    takes three times as many bytes of disk, and ten times as many for `safetensors`, whose values are decoded. Each
    job's figures are printed to stderr when it ends."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        dataset = made_dataset(Path(folder) if folder is not None else place, nbytes)
        if "disk" in places:
            yield from _rates("Local disk", str(dataset), partial(_emptied, place), {}, runs, formats)
            yield _peaks(str(dataset), place)
        if "bucket" in places:
            yield from _from_bucket_to_bucket(dataset, place / "seaweedfs", runs, formats)


def _from_bucket_to_bucket(dataset: Path, folder: Path, runs: int, formats: Sequence[str]) -> Iterator[Table]:
    server = SeaweedFS(folder)
    try:
        options = server.storage_options
        there = server.make_bucket("dataset")
        upload(dataset, there, options)
        yield from _rates("Bucket to bucket", there, server.bucket, options, runs, formats)
        job = _export_job(there, CODES_AS_THEY_ARE[0], options)
        rows = [
            _peak_row(
                f"{job['format']}, budget {budget} MiB",
                {**job, "budget": f"{budget}MiB"},
                server.bucket,
                at_most(budget + _BEYOND),
                {},
            )
            for budget in _OF_BUCKETS
        ]
        yield Table("Bucket to bucket: peak memory of an export above the process's before", tuple(rows))
    finally:
        server.stop()


def made_dataset(folder: Path, nbytes: int) -> Path:
    """A Llama with about `nbytes` stored bytes (at least one block), quantized with configs/vllm-w4a16.yaml; the one
    that an earlier run left, if there is one."""
    blocks = max(1, round((nbytes - _KEPT_NBYTES) / _BLOCK_NBYTES))
    dataset, source = folder / f"llama-{blocks}-w4a16", folder / f"llama-{blocks}-source"
    if not (dataset / "manifest.json").exists():
        write_checkpoint(source, llama(_HIDDEN, _INNER, blocks, _WORDS))
        tokenizer = byte_pairs()
        tokenizer.save_pretrained(source)
        config = LlamaConfig(
            vocab_size=_WORDS,
            hidden_size=_HIDDEN,
            intermediate_size=_INNER,
            num_hidden_layers=blocks,
            architectures=["LlamaForCausalLM"],
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            dtype="bfloat16",
        )
        config.save_pretrained(source)
        settings, run = load_config(str(CONFIGS / "vllm-w4a16.yaml"))
        # a compressed block is decompressed as a whole, and the smallest budget has 35 MiB for that
        run = run.replace(engine="inline", workers=WORKERS, block_bytes=_ROW_BLOCK_NBYTES)
        quantize(str(source), str(dataset), settings, run)
        shutil.rmtree(source)
    return dataset


def _rates(
    where: str,
    dataset: str,
    new: Emptied,
    options: Mapping[str, Any],
    runs: int,
    formats: Sequence[str],
) -> Iterator[Table]:
    for name in formats:
        nbytes, ours, theirs, limits = _measured(dataset, name, new, options, runs, _limits_of(name))
        rows = _compared(f"{name}, {nbytes / 1e9:.3g} GB", nbytes, ours, theirs, limits)
        yield Table(f"{where}: export with {WORKERS} workers, median of {runs}", tuple(rows))


def measured_on_disk(
    dataset: Path, name: str, runs: int, folder: Path
) -> tuple[list[float], list[float], int]:
    """The seconds of each round of an export, those of a copy of what it wrote, and how many bytes it wrote."""
    nbytes, ours, theirs, _ = _measured(str(dataset), name, partial(_emptied, folder), {}, runs, ())
    return ours.seconds, theirs.seconds, nbytes


def _measured(
    dataset: str, name: str, new: Emptied, options: Mapping[str, Any], runs: int, limits: Sequence[str]
) -> tuple[int, _Found, _Found, dict[str, _Found]]:
    """The number of bytes written, and the measurements of the export, of a copy, and of the jobs in `limits`."""
    with new("written") as written:
        job = _export_job(dataset, name, options)
        _run({**job, "out": written})  # does not count
        nbytes = sum(info.nbytes for info in open_store(written, Storage(options)).list())
        ours, theirs, least = _Found(), _Found(), {what: _Found() for what in limits}
        jobs = [(ours, job), (theirs, {**job, "job": "copy", "source": written})]
        jobs += [(found, {**job, "job": what}) for what, found in least.items()]
        for _ in range(runs):
            for found, one in jobs:
                with new("out") as out:
                    _add(found, {**one, "out": out})
    return nbytes, ours, theirs, least


def _limits_of(name: str) -> Sequence[str]:
    """The jobs that do the least. Formats with decoded values have none: they write more bytes than were stored."""
    if name not in CODES_AS_THEY_ARE:
        return ()
    return ("decompress", "pack") if name == "gguf" else ("decompress",)


def _compared(
    title: str, nbytes: int, ours: _Found, theirs: _Found, limits: Mapping[str, _Found]
) -> Iterator[Row]:
    """Rows that compare the rates for `nbytes` bytes."""
    rates = [nbytes / 1e6 / median(found.seconds) for found in (ours, theirs)]
    whole = [nbytes / 1e6 / median(found.process_seconds) for found in (ours, theirs)]
    yield Row(title, rates[0], "MB/s", "copy", rates[1], ratio_of(_LEAST_RATE))
    yield Row(f"{title}, whole process", whole[0], "MB/s", "copy", whole[1])
    for what, limit in limits.items():
        most, cpu = nbytes / 1e6 / median(limit.seconds), [median(f.cpu_seconds) for f in (ours, limit)]
        peer = _LEAST_WORK[what]
        yield Row(title, rates[0], "MB/s", peer, most, ratio_of(_LEAST_OF_LIMIT))
        yield Row(f"{title}, CPU", cpu[0], "s", peer, cpu[1])


def _peaks(dataset: str, place: Path) -> Table:
    """A table of memory above what the process had before. Decoding needs kernels, and therefore Numba, whose import
    alone takes more than the smallest budget; GGUF's blocks need LLVM, whose library is nearly as large. So each row
    says which of these the process had before, and which are counted."""
    new: Emptied = partial(_emptied, place)
    rows = []
    for name, budget in (
        *((name, budget) for name in CODES_AS_THEY_ARE for budget in BUDGETS),
        (DECODED, BUDGETS[0]),
    ):
        job = {**_export_job(dataset, name, {}), "budget": f"{budget}MiB", "kernels": "loaded"}
        rows.append(_peak_row(f"{name}, budget {budget} MiB", job, new, at_most(budget + _BEYOND), {}))
    anew = {"NUMBA_CACHE_DIR": str(place / "kernels")}
    counted: tuple[tuple[str, str, str, Mapping[str, str]], ...] = (
        ("gguf", "none", "loading LLVM", {}),
        (DECODED, "imported", "loading kernels", {}),
        (DECODED, "none", "importing Numba", {}),
        (DECODED, "none", "compiling kernels", anew),
    )
    for name, kernels, what, environment in counted:
        job = {**_export_job(dataset, name, {}), "budget": f"{BUDGETS[0]}MiB", "kernels": kernels}
        title = f"{name}, budget {BUDGETS[0]} MiB, and {what}"
        rows.append(_peak_row(title, job, new, None, environment))
    return Table("Peak memory of an export above the process's before", tuple(rows))


def _peak_row(
    title: str, job: Job, new: Emptied, target: Target | None, environment: Mapping[str, str]
) -> Row:
    with new("out") as out:
        return Row(
            title, _run({**job, "out": out}, environment)[0]["peak_nbytes"] / 2**20, "MiB", target=target
        )


def _export_job(dataset: str, name: str, options: Mapping[str, Any]) -> Job:
    budget = f"{BUDGETS[-1]}MiB"
    what = {"job": "export", "source": dataset, "format": name, "budget": budget}
    return {**what, "workers": WORKERS, "options": options}


def _add(found: _Found, job: Job) -> None:
    said, process_seconds = _run(job)
    found.seconds.append(said["seconds"])
    found.cpu_seconds.append(said["cpu_seconds"])
    found.process_seconds.append(process_seconds)
    found.peak_nbytes = max(found.peak_nbytes, said["peak_nbytes"])


def _run(job: Job, environment: Mapping[str, str] | None = None) -> tuple[dict[str, Any], float]:
    """The JSON that the job printed, and the seconds of its process."""
    command = [sys.executable, "-m", "tests.benchmarks.export_one", json.dumps(job)]
    run = run_process(command, environment)
    said: dict[str, Any] = json.loads(run.output)
    figures = f"{said['seconds']:.1f} s, {said['cpu_seconds']:.1f} s of CPU, {said['peak_nbytes'] >> 20} MiB"
    print(f"{job['job']} to {job['out']}: {figures}", file=sys.stderr, flush=True)
    return said, run.seconds


@contextmanager
def _emptied(place: Path, name: str) -> Iterator[str]:
    with emptied(place / name):
        yield str(place / name)
