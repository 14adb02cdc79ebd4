"""The whole program with libraries that lack all private names that it uses of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet

from tests.integration.program import run
from tests.kernels.without_names import WITHOUT_NUMBAS_NAMES
from tests.servers.fixtures import Bucket
from tests.servers.seaweedfs import SeaweedFS

_WITHOUT_NAMES = f"""
{WITHOUT_NUMBAS_NAMES}
from arrowquant_dist.checkpoint import torch_private
torch_private._MODULE = "torch._renamed"
from arrowquant_dist.storage.remote import fsspec_private, s3fs_private
s3fs_private._CALL = fsspec_private._PREFIX = "_renamed"
"""
_COLUMNS = ["layer_name", "row_start", "data", "scales", "zero_points", "checksum"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A `.bin` with a layer whose codes make a value that the package's own kernel compresses."""
    generator = torch.Generator().manual_seed(3)
    weights = {
        "large.weight": torch.randn(700, 1000, generator=generator).half(),
        "small.weight": torch.randn(30, 64, generator=generator).bfloat16().t(),
        "norm.weight": torch.ones(64),
    }
    torch.save(weights, tmp_path / "model.bin")
    return tmp_path / "model.bin"


@pytest.mark.slow
def test_a_run_without_private_names_makes_the_same_dataset(
    tmp_path: Path,
    checkpoint: Path,
    seaweedfs: SeaweedFS,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret)
    monkeypatch.setenv("AWS_ENDPOINT_URL", seaweedfs.endpoint_url)
    arguments = ["--quant", "int4", "--method", "rtn", "--asymmetric", "--per-group", "--engine", "inline"]
    usual = run("quantize", checkpoint, tmp_path / "usual", *arguments)
    assert usual.returncode == 0, usual.stderr
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    target = f"{bucket.uri}/other"
    other = run("quantize", checkpoint, target, *arguments, before=_WITHOUT_NAMES)
    assert other.returncode == 0, other.stderr
    there = bucket.objects.download_folder(target, tmp_path / "other")
    assert rows(there) == rows(tmp_path / "usual")
    verified = run("verify", target, before=_WITHOUT_NAMES)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def rows(target: Path) -> list[dict[str, Any]]:
    table = parquet.read_table(target / "weights", columns=_COLUMNS)
    return sorted(table.to_pylist(), key=lambda row: (row["layer_name"], row["row_start"]))
