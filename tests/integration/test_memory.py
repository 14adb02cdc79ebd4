"""A worker's memory depends on block_bytes, not on the model or on its largest layer."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.program import run

MIB = 1 << 20
CONFIG = """
quant_type: {quant_type}
per_channel: false
group_size: 128
run: {{block_bytes: 4MiB, shard_bytes: {shard_bytes}MiB, compression: {compression}, workers: 1}}
"""


def write_checkpoint(path: Path, layers: int, layer_mib: int) -> Path:
    """`layers` bf16 layers of 4096 columns, written block by block: this process must not be what is large."""
    rows = layer_mib * MIB // 8192
    header = {}
    for i in range(layers):
        offsets = [i * layer_mib * MIB, (i + 1) * layer_mib * MIB]
        header[f"layers.{i}.weight"] = {"dtype": "BF16", "shape": [rows, 4096], "data_offsets": offsets}
    text = json.dumps(header).encode()
    # Values near 0.01 with random mantissas: finite, and not what zstd can make small.
    block = np.random.default_rng(1).integers(0x3C00, 0x3D00, MIB // 2, np.uint16).tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(layers * layer_mib):
            file.write(block)
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """A small checkpoint, one of many layers, and one of a large layer."""
    folder = tmp_path_factory.mktemp("sources")
    yield [
        write_checkpoint(folder / "small.safetensors", 2, 12),
        write_checkpoint(folder / "many.safetensors", 16, 12),
        write_checkpoint(folder / "large.safetensors", 1, 192),
    ]
    shutil.rmtree(folder)


# The largest resident set of this program alone: ru_maxrss begins with that of the process that started it.
TELL_PEAK = """
import atexit, pathlib, re, sys
def tell():
    status = pathlib.Path("/proc/self/status").read_text()
    sys.stderr.write(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1])
atexit.register(tell)
"""


def peak_nbytes(source: Path, target: Path, config: str) -> int:
    """Resident set of a process that quantizes `source`, as the kernel counted it."""
    file = target.with_suffix(".yaml")
    file.write_text(config)
    done = run("quantize", source, target, "--config", file, "--json", "--quiet", before=TELL_PEAK)
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout)["report"]["timing"]["peak_memory_nbytes"]
    measured = int(done.stderr) * 1024
    assert reported == pytest.approx(measured, rel=0.2)  # index and report come after the last shard
    return measured


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own count is in /proc")
@pytest.mark.slow
@pytest.mark.parametrize(("quant_type", "compression"), [("int8", "zstd"), ("int4", "none")])
def test_a_worker_s_memory_does_not_grow_with_the_model_or_its_layers(
    sources: list[Path], tmp_path: Path, quant_type: str, compression: str
) -> None:
    config = CONFIG.format(quant_type=quant_type, compression=compression, shard_bytes=256)
    peaks = {p.stem: peak_nbytes(p, tmp_path / p.stem, config) for p in sources}
    # 8 times the bytes; the difference allowed is that of allocators and of the threads' stacks.
    assert peaks["many"] - peaks["small"] < 32 * MIB, peaks
    assert peaks["large"] - peaks["small"] < 32 * MIB, peaks
