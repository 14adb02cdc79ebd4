"""MiniLM from and to storages that are only reached through their fsspec packages: gs://, az://, and hf:// as a
source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from arrowquant_dist import ArrowQuantizer, WeightLoader
from arrowquant_dist.config import Storage
from arrowquant_dist.verify import verify
from tests.datasets import weights_of
from tests.integration.sizes import INT8, SIZES
from tests.servers.azurite import Azurite
from tests.servers.folders import download, upload
from tests.servers.gcs import Gcs
from tests.servers.hub import MODEL, Hub


@pytest.fixture(params=["gcs", pytest.param("azurite", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest) -> Gcs | Azurite:
    server: Gcs | Azurite = request.getfixturevalue(request.param)
    return server


@pytest.fixture(scope="module")
def on_disk(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("on-disk") / "target"
    ArrowQuantizer(INT8, SIZES).quantize(str(minilm), str(target))
    return target


def downloaded(server: Gcs | Azurite, root: str, folder: Path) -> Path:
    paths = [name.removeprefix(f"{root}/") for name in server.names(f"{root}/")]
    return download(paths, server.get, root, folder)


@pytest.mark.slow
def test_minilm_goes_from_cloud_to_cloud_and_comes_out_as_on_disk(
    server: Gcs | Azurite, minilm: Path, on_disk: Path, weights: dict[str, np.ndarray], tmp_path: Path
) -> None:
    upload(minilm, server.put, "models/minilm")
    source, target = f"{server.uri}/models/minilm", f"{server.uri}/datasets/int8"
    run = SIZES.replace(storage_options=server.storage_options)
    quantizer = ArrowQuantizer(INT8, run)
    quantizer.quantize(source, target)
    assert verify(target, Storage(server.storage_options)).is_sound

    stored = downloaded(server, "datasets/int8", tmp_path / "stored")
    assert weights_of(stored) == weights_of(on_disk)
    assert verify(str(stored)).is_sound

    loader = WeightLoader(target, storage_options=server.storage_options)
    assert sorted(name for name, _ in loader) == sorted(weights)


def test_a_run_that_died_is_resumed_there(
    server: Gcs | Azurite, minilm: Path, on_disk: Path, tmp_path: Path
) -> None:
    """As killed before its last commits and the manifest."""
    target = f"{server.uri}/datasets/resumed"
    cut = {"manifest.json", "index.parquet", *(f"run/commits/{shard:05d}.json" for shard in range(1, 100))}
    for file in (file for file in on_disk.rglob("*") if file.is_file()):
        name = file.relative_to(on_disk).as_posix()
        if name not in cut and not name.startswith("report/"):
            server.put(f"datasets/resumed/{name}", file.read_bytes())
    run = SIZES.replace(target_storage_options=server.storage_options)
    ArrowQuantizer(INT8, run).quantize(str(minilm), target)
    assert verify(target, Storage(server.storage_options)).is_sound
    stored = downloaded(server, "datasets/resumed", tmp_path / "stored")
    assert weights_of(stored) == weights_of(on_disk)
    kept = json.loads((stored / "run/commits/00000.json").read_text())
    assert kept == json.loads((on_disk / "run/commits/00000.json").read_text())


@pytest.fixture
def hub(minilm: Path) -> Iterator[Hub]:
    hub = Hub(minilm)
    yield hub
    hub.stop()


def quantize_from(hub: Hub, source: str, target: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads these when it is imported."""
    config = target.with_name("config.yaml")
    config.write_text(
        "quant_type: int8\nrun: {block_bytes: 8MiB, shard_bytes: 32MiB, transfer: {range_bytes: 4MiB}}\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint_url, "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(target.with_name("home")), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [
        sys.executable,
        "-m",
        "arrowquant_dist",
        "quantize",
        source,
        str(target),
        "--config",
        str(config),
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_minilm_comes_from_a_hub_and_each_byte_of_it_once(
    hub: Hub, minilm: Path, on_disk: Path, tmp_path: Path
) -> None:
    done = quantize_from(hub, f"hf://{MODEL}", tmp_path / "target")
    assert done.returncode == 0, done.stderr
    assert weights_of(tmp_path / "target") == weights_of(on_disk)
    nbytes = sum(stop - start for start, stop in hub.ranges["model.safetensors"])
    assert nbytes < 1.01 * (minilm / "model.safetensors").stat().st_size
    assert [path for path in (tmp_path / "home").rglob("*") if path.stat().st_size > 1 << 20] == []


def test_a_model_that_the_hub_does_not_have_is_bad_input(hub: Hub, tmp_path: Path) -> None:
    done = quantize_from(hub, "hf://someone/else", tmp_path / "target")
    assert done.returncode == 2, done.stderr
    assert "hf://someone/else" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "target").exists()
