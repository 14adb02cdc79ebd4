"""A size gives the same bytes on threads and on Ray's actors, on disk and in a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig
from tests.datasets import weights_of
from tests.servers.fixtures import Bucket
from tests.sizing.test_run import parts_nbytes
from tests.sources import random_weights, save_checkpoint

pytestmark = pytest.mark.slow
SIZE = 300_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Path(save_checkpoint(tmp_path / "source", random_weights(4, 384, 512, torch.float32)))


@pytest.fixture
def on_threads(source: Path, tmp_path: Path) -> Path:
    ArrowQuantizer(QuantizationConfig(size=SIZE), RunConfig(engine="inline")).quantize(
        str(source), str(tmp_path / "threads")
    )
    return tmp_path / "threads"


def test_ray_makes_what_threads_make(source: Path, on_threads: Path, tmp_path: Path) -> None:
    run = RunConfig(engine="ray", workers=2)
    ArrowQuantizer(QuantizationConfig(size=SIZE), run).quantize(str(source), str(tmp_path / "ray"))
    assert 0.99 * SIZE <= parts_nbytes(tmp_path / "ray") <= SIZE
    assert weights_of(tmp_path / "ray") == weights_of(on_threads)


def test_a_bucket_gets_what_a_folder_gets(
    source: Path, on_threads: Path, bucket: Bucket, tmp_path: Path
) -> None:
    bucket.objects.upload_folder(source, f"{bucket.uri}/source")
    run = RunConfig(engine="inline", storage_options=bucket.storage_options)
    ArrowQuantizer(QuantizationConfig(size=SIZE), run).quantize(f"{bucket.uri}/source", f"{bucket.uri}/out")
    stored = bucket.objects.download_folder(f"{bucket.uri}/out", tmp_path / "stored")
    assert parts_nbytes(stored) == parts_nbytes(on_threads)
    assert weights_of(stored) == weights_of(on_threads)
