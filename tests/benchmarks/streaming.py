"""Verified codes from an S3 server on this machine, against Run:ai's Model Streamer on as many bytes of safetensors,
and against a client that receives the same bytes into new memory and does nothing else with them.

Each side is a process of its own, which has talked to the server once and reports how long it took from opening to the
last tensor. Run:ai's needs torch and the packages runai-model-streamer and runai-model-streamer-s3 in the environment
whose Python `--runai` names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from s3fs import S3FileSystem
from safetensors.torch import save_file

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.config.choices import CompressionName
from tests.benchmarks.source import write_checkpoint
from tests.benchmarks.table import Row, Table, ratio_of
from tests.benchmarks.uploading import upload
from tests.servers.seaweedfs import SeaweedFS

_WAYS = 8
PEER = f"Run:ai Model Streamer, {_WAYS} ways"
COMPRESSIONS: tuple[CompressionName, ...] = ("none", "zstd")

_RUNAI = """
import sys, time
from runai_model_streamer import SafetensorsStreamer

def stream(uri):
    start, count = time.perf_counter(), 0
    with SafetensorsStreamer() as streamer:
        streamer.stream_file(uri)
        for name, tensor in streamer.get_tensors():
            count += tensor.numel()
    return time.perf_counter() - start, count

for uri in sys.argv[1:]:  # the first is small: what it takes to talk to S3 is loaded with it
    found = stream(uri)
print(*found)
"""

_RECEIVE = """
import http.client, json, sys, time
from concurrent.futures import ThreadPoolExecutor
from threading import local
from urllib.parse import urlsplit
import numpy as np

ways, objects = int(sys.argv[1]), json.loads(sys.argv[2])
of_thread, step = local(), 16 << 20

def receive(url, start, view):
    place = urlsplit(url)
    if not hasattr(of_thread, "connection"):
        of_thread.connection = http.client.HTTPConnection(place.netloc)
    last = start + len(view) - 1
    of_thread.connection.request("GET", f"{place.path}?{place.query}", headers={"Range": f"bytes={start}-{last}"})
    answer, done = of_thread.connection.getresponse(), 0
    while done < len(view):
        done += answer.readinto(view[done:])
    answer.read()

started = time.perf_counter()
with ThreadPoolExecutor(ways) as pool:
    waiting = []
    for url, nbytes in objects:
        memory = memoryview(np.empty(nbytes, np.uint8))
        for start in range(0, nbytes, step):
            waiting.append(pool.submit(receive, url, start, memory[start : start + step]))
    for one in waiting:
        one.result()
print(time.perf_counter() - started)
"""


def tables(params: int, runs: int, folder: str | None, runai: str) -> Iterator[Table]:
    """A table of what `measured` gives. runai: path of the Python that has the peer."""
    seconds, nbytes = measured(params, runs, folder, [runai])
    rates = {name: nbytes / 1e9 / median(found) for name, found in seconds.items()}
    rows = tuple(
        Row(f"codes, {name}, verified", rates[name], "GB/s", peer, rates.get(peer), target)
        for name in COMPRESSIONS
        for peer, target in ((PEER, ratio_of(1.1)), (_limit(name), None))
    )
    yield Table(f"{nbytes / 1e9:.2f} GB of int8 from SeaweedFS, {_WAYS} ways each, median of {runs}", rows)


def measured(
    params: int, runs: int, folder: str | None, pythons: Sequence[str]
) -> tuple[dict[str, list[float]], int]:
    """The seconds of each round, by compression, by PEER (if one of `pythons` has it) and by the client that only
    receives the bytes; and the size of the codes in bytes.

    params: about as many bytes are streamed; takes 7 bytes of disk for each of them.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        server = SeaweedFS(Path(place) / "server")
        try:
            return _measured(server, params, runs, Path(place), pythons)
        finally:
            server.stop()


def _measured(
    server: SeaweedFS, params: int, runs: int, folder: Path, pythons: Sequence[str]
) -> tuple[dict[str, list[float]], int]:
    source = folder / "source.safetensors"
    write_checkpoint(source, params)
    uri = server.make_bucket("streaming")
    options = server.storage_options
    commands: dict[str, list[str]] = {}
    for compression in COMPRESSIONS:
        run = RunConfig(engine="inline", compression=compression)
        ArrowQuantizer(QuantizationConfig("int8"), run).quantize(source, folder / compression)
        upload(folder / compression, f"{uri}/{compression}", options)
        here = [
            sys.executable,
            "-m",
            "tests.benchmarks.streaming",
            f"{uri}/{compression}",
            json.dumps(options),
        ]
        commands[compression] = here
        objects = json.dumps(_signed(f"{uri}/{compression}", options))
        commands[_limit(compression)] = [sys.executable, "-c", _RECEIVE, str(_WAYS), objects]
    runai = next((python for python in pythons if _has_peer(python)), None)
    if runai is not None:
        (folder / "plain").mkdir()
        save_file(_codes(folder / "none"), folder / "plain" / "model.safetensors")
        save_file({"x": torch.zeros(1)}, folder / "plain" / "small.safetensors")
        upload(folder / "plain", f"{uri}/plain", options)
        files = [f"{uri}/plain/{name}.safetensors" for name in ("small", "model")]
        commands[PEER] = [runai, "-c", _RUNAI, *files]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for name in [
        *commands,
        *(name for _ in range(runs) for name in commands),
    ]:  # the first round of each does not count
        seconds[name].append(_seconds(commands[name], server))
    nbytes = sum(array.numel() for array in _codes(folder / "none").values())
    return {name: found[1:] for name, found in seconds.items()}, nbytes


def _has_peer(python: str) -> bool:
    found = subprocess.run([python, "-c", "import runai_model_streamer_s3"], capture_output=True, check=False)
    return found.returncode == 0


def _limit(compression: str) -> str:
    return f"received, {compression}, {_WAYS} ways, no more"


def _signed(uri: str, options: Mapping[str, object]) -> list[tuple[str, int]]:
    """For each part, a URL that anyone may read and its size."""
    fs = S3FileSystem(**options)
    parts = sorted(path for path in fs.find(uri) if path.endswith(".parquet"))
    return [(fs.sign(path, expiration=24 * 3600), fs.info(path)["size"]) for path in parts]


def _codes(target: Path) -> dict[str, torch.Tensor]:
    """Tensors of as many bytes as the codes, with their sizes."""
    with WeightLoader(target, dequantize=False) as loader:
        return {name: torch.from_numpy(np.array(tensor.codes)) for name, tensor in loader}


def _seconds(command: list[str], server: SeaweedFS) -> float:
    said = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **_environment(server)}
    )
    return float(said.stdout.split()[0])


def _environment(server: SeaweedFS) -> Mapping[str, str]:
    """The environment variables from which Run:ai's streamer takes its settings."""
    return {
        "RUNAI_STREAMER_CONCURRENCY": str(_WAYS),
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        "AWS_ENDPOINT_URL": server.endpoint_url,
        "AWS_ACCESS_KEY_ID": server.key,
        "AWS_SECRET_ACCESS_KEY": server.secret,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def main() -> None:
    uri, options = sys.argv[1:]
    opened = partial(WeightLoader, uri, storage_options=json.loads(options), dequantize=False, workers=_WAYS)
    opened().close()  # imports everything that is needed to talk to S3
    start = time.perf_counter()
    nbytes = 0
    with opened() as loader:
        for _, tensor in loader:
            nbytes += tensor.nbytes
    print(time.perf_counter() - start, nbytes)


if __name__ == "__main__":
    main()
