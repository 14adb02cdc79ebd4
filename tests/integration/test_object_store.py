"""MiniLM from a real S3 server to a real S3 server, without a local copy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arrowquant_dist import ArrowQuantizer, RunConfig, WeightLoader
from arrowquant_dist.config import Storage
from arrowquant_dist.verify import verify
from tests.datasets import weights_of
from tests.integration.sizes import INT8, SIZES
from tests.servers.fixtures import Bucket


@pytest.fixture
def source(bucket: Bucket, minilm: Path) -> str:
    bucket.objects.upload_folder(minilm, f"{bucket.uri}/models/minilm")
    return f"{bucket.uri}/models/minilm"


@pytest.fixture
def in_bucket(bucket: Bucket) -> RunConfig:
    return SIZES.replace(storage_options=bucket.storage_options)


def test_minilm_goes_from_bucket_to_bucket_and_comes_out_as_on_disk(
    bucket: Bucket, source: str, in_bucket: RunConfig, minilm: Path, tmp_path: Path
) -> None:
    target = f"{bucket.uri}/datasets/minilm-int8"
    ArrowQuantizer(INT8, in_bucket).quantize(source, target)
    assert verify(target, Storage(bucket.storage_options)).is_sound

    local = tmp_path / "local"
    ArrowQuantizer(INT8, SIZES).quantize(str(minilm), str(local))
    stored = bucket.objects.download_folder(target, tmp_path / "stored")
    assert weights_of(stored) == weights_of(local)
    assert verify(str(stored)).is_sound
    assert bucket.objects.uploads(bucket.uri) == []


def test_the_loader_streams_weights_from_the_bucket(
    bucket: Bucket, source: str, in_bucket: RunConfig, weights: dict[str, np.ndarray]
) -> None:
    target = f"{bucket.uri}/datasets/minilm-int8"
    ArrowQuantizer(INT8, in_bucket).quantize(source, target)
    loader = WeightLoader(target, storage_options=bucket.storage_options)
    name = "encoder.layer.0.attention.self.query.weight"
    loaded = loader[name].numpy()
    assert np.abs(loaded - weights[name]).max() <= np.abs(weights[name]).max(axis=1).max() / 127
    assert len(list(loader)) == len(weights)


def test_nothing_of_it_is_written_to_the_local_disk(
    bucket: Bucket, source: str, in_bucket: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    ArrowQuantizer(INT8, in_bucket).quantize(source, f"{bucket.uri}/target")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
