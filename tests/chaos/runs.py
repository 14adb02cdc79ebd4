"""The run that gets disturbed, and what has to hold afterwards, checked by other means than the code under test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.config import Storage
from arrowquant_dist.driver import quantize
from arrowquant_dist.verify import verify
from tests.datasets import manifest_of, weights_of
from tests.servers.objects import Objects

LAYERS, ROWS, LARGE_ROWS, COLUMNS = 2, 2048, 8192, 1024
TIMES_LONG = 8
CONFIG = QuantizationConfig("int8")
# One scale per layer: each layer is a shard, and the part of the largest one is uploaded in two pieces.
LARGE_PARTS = QuantizationConfig("int8", per_channel=False, group_size=0)
# Makes hundreds of requests: ranges of a quarter of a row block, and 13 shards.
TRANSFER: dict[str, Any] = {
    "range_bytes": 256 << 10,
    "upload_bytes": 5 << 20,
    "requests": 8,
    "connect_timeout": 2.0,
    "request_timeout": 1.5,
    "retries": 10,
    "backoff": 0.02,
}
RUN = RunConfig(block_bytes=1 << 20, shard_bytes=4 << 20, engine="inline", workers=2, transfer=TRANSFER)  # type: ignore[arg-type]

Weights = dict[tuple[str, int], tuple[bytes, bytes, bytes]]


@dataclass(frozen=True)
class Source:
    """The checkpoint. folder: its folder. shards: number of shards of a run whose shards are 1 MiB."""

    folder: Path
    shards: int

    @property
    def uri(self) -> str:
        return str(self.folder)


def write_source(folder: Path, times: int = 1) -> Source:
    """Writes `times` 50 MB of float32 with the safetensors package."""
    rng = np.random.default_rng(8)
    folder.mkdir(parents=True)
    rows = {**{f"layers.{i}": ROWS * times for i in range(LAYERS)}, "large": LARGE_ROWS * times}
    tensors = {f"{name}.weight": rng.standard_normal((n, COLUMNS), np.float32) for name, n in rows.items()}
    norms = {f"layers.{i}.norm": np.ones(COLUMNS, np.float32) for i in range(LAYERS)}
    save_file({**tensors, **norms}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "chaos"}')
    return Source(folder, shards=sum(rows.values()) * COLUMNS * 4 // (1 << 20) + len(norms))


def quiet_weights(source: Source, target: Path, config: QuantizationConfig = CONFIG) -> Weights:
    quantize(source.uri, str(target), config, RUN)
    return weights_of(target)


def assert_whole(target: Path, quiet: Weights) -> None:
    """Asserts that the local dataset verifies, has the bytes of the undisturbed run, and names every file that is
    there."""
    report = verify(str(target))
    assert report.is_sound, report.problems
    _assert_same_rows(weights_of(target), quiet)
    named = {part["path"] for part in manifest_of(target)["parts"]}
    found = {str(f.relative_to(target)) for f in (target / "weights").rglob("*") if f.is_file()}
    assert found == named
    commits = [f.name for f in (target / "run" / "commits").iterdir()]
    assert len(commits) == len(named), commits


def assert_whole_in(
    objects: Objects, uri: str, storage: dict[str, Any], quiet: Weights, scratch: Path
) -> None:
    """Asserts the same of a dataset on the server, and that no upload was left open."""
    report = verify(uri, Storage(storage))
    assert report.is_sound, report.problems
    assert_whole(objects.download_folder(uri, scratch), quiet)
    assert objects.uploads(uri) == []


def assert_unpublished(objects: Objects, uri: str) -> None:
    """Asserts that there is no manifest, so no dataset, and that no upload was left open."""
    assert "manifest.json" not in objects.sizes(uri)
    assert objects.uploads(uri) == []


def _assert_same_rows(found: Weights, quiet: Weights) -> None:
    assert found.keys() == quiet.keys()
    wrong = [key for key, row in found.items() if row != quiet[key]]
    assert not wrong, f"other codes or scales than the quiet run's in {wrong[:5]}"
