"""An object store that fails: whatever it does, either the dataset is that of an undisturbed run, or there is an error
and no dataset."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arrowquant_dist import QuantizationConfig, WeightLoader
from arrowquant_dist.config import Storage
from arrowquant_dist.driver import quantize
from arrowquant_dist.errors import ArrowQuantError, CorruptWeights, StorageError
from arrowquant_dist.verify import verify
from tests.chaos.conftest import Note
from tests.chaos.runs import (
    CONFIG,
    LARGE_PARTS,
    RUN,
    TRANSFER,
    Source,
    Weights,
    assert_unpublished,
    assert_whole,
    assert_whole_in,
)
from tests.servers.fault_proxy import FaultProxy
from tests.servers.faults import Fault, Kind
from tests.servers.fixtures import Bucket
from tests.servers.seaweedfs import SeaweedFS


@dataclass(frozen=True)
class Place:
    """A checkpoint on a server and an empty target, reached through a proxy; checked behind its back."""

    source: str
    proxy: FaultProxy
    bucket: Bucket
    options: dict[str, Any]
    scratch: Path

    @property
    def target(self) -> str:
        return f"{self.bucket.uri}/target"

    def quantize(self, config: QuantizationConfig = CONFIG, **transfer: Any) -> None:
        """transfer: what is different from the suite's settings."""
        run = RUN.replace(transfer={**TRANSFER, **transfer}, storage_options=self.options)
        quantize(self.source, self.target, config, run)

    def assert_whole(self, quiet: Weights) -> None:
        objects, options = self.bucket.objects, self.bucket.storage_options
        assert_whole_in(objects, self.target, options, quiet, self.scratch / "downloaded")


@pytest.fixture
def place(seaweedfs: SeaweedFS, bucket: Bucket, stored: str, tmp_path: Path) -> Iterator[Place]:
    with FaultProxy(seaweedfs.port) as proxy:
        yield Place(stored, proxy, bucket, seaweedfs.options_at(proxy.endpoint_url), tmp_path)


def befell(proxy: FaultProxy) -> str:
    return f"{len(proxy.injected)} of {proxy.requests} requests failed"


def body(kind: Kind, probability: float, limit: int | None = None) -> Fault:
    return Fault(kind, "GET", r"model\.safetensors", r"\nrange:", probability=probability, limit=limit)


PASSING = {
    "10 % of requests 503": (Fault(Kind.SLOW_DOWN, probability=0.1),),
    "10 % of requests 500": (Fault(Kind.INTERNAL_ERROR, probability=0.1),),
    "connections reset before the request": (Fault(Kind.RESET_REQUEST, probability=0.1),),
    "reads reset mid-body": (Fault(Kind.RESET_BODY, "GET", probability=0.1),),
    "truncated bodies": (Fault(Kind.TRUNCATED_BODY, "GET", probability=0.1),),
    "stalled headers": (Fault(Kind.STALLED_HEADERS, probability=0.02, limit=4),),
    "stalled bodies": (Fault(Kind.STALLED_BODY, "GET", probability=0.02, limit=2),),
    "a slow trickle": (body(Kind.TRICKLE, 0.03, 5),),
    "everything at once": (
        Fault(Kind.SLOW_DOWN, probability=0.04),
        Fault(Kind.RESET_BODY, "GET", probability=0.04),
        Fault(Kind.TRUNCATED_BODY, "GET", probability=0.04),
        Fault(Kind.LOST_RESPONSE, "PUT|POST", probability=0.1),
        Fault(Kind.STALLED_BODY, "GET", probability=0.01, limit=2),
    ),
}
# The rest is for `pytest tests/chaos -m ''`: each takes 3 to 6 s. tests/storage has every kind for single objects.
QUICK = {"10 % of requests 503", "completion", "commits"}


def cases(values: Mapping[str, Any]) -> list[Any]:
    """A parameter for each, slow but for the QUICK ones."""
    marks = {name: () if name in QUICK else (pytest.mark.slow,) for name in values}
    return [pytest.param(value, id=name, marks=marks[name]) for name, value in values.items()]


@pytest.mark.parametrize("faults", cases(PASSING))
def test_faults_that_pass_cost_nothing_but_time(
    place: Place, quiet: Weights, note: Note, faults: tuple[Fault, ...]
) -> None:
    place.proxy.rewrite(*faults, seed=8)
    place.quantize()
    note(befell(place.proxy))
    assert place.proxy.injected
    place.assert_whole(quiet)


LOST = {
    "a part": Fault(Kind.LOST_RESPONSE, "PUT", r"/target/weights/", limit=3),
    "a commit": Fault(Kind.LOST_RESPONSE, "PUT", r"/target/run/commits/", limit=3),
    "the plan": Fault(Kind.LOST_RESPONSE, "PUT", r"/target/run/plan", limit=1),
    "the manifest": Fault(Kind.LOST_RESPONSE, "PUT", r"/target/manifest\.json", limit=1),
}


@pytest.mark.parametrize("fault", cases(LOST))
def test_a_write_is_applied_once_whose_answer_is_lost(
    place: Place, quiet: Weights, note: Note, fault: Fault
) -> None:
    place.proxy.rewrite(fault)
    place.quantize()
    note(befell(place.proxy))
    assert len(place.proxy.injected) == fault.limit
    place.assert_whole(quiet)


LOST_UPLOADS = {
    "start": Fault(Kind.LOST_RESPONSE, "POST", r"\?uploads", limit=1),
    "piece": Fault(Kind.LOST_RESPONSE, "PUT", r"partNumber=", limit=1),
    "completion": Fault(Kind.LOST_RESPONSE, "POST", r"uploadId=", limit=1),
}


@pytest.mark.parametrize("fault", cases(LOST_UPLOADS))
def test_an_upload_is_whole_though_an_answer_is_lost(
    place: Place, quiet_large: Weights, note: Note, fault: Fault
) -> None:
    place.proxy.rewrite(fault)
    place.quantize(LARGE_PARTS)
    note(befell(place.proxy))
    assert len(place.proxy.injected) == 1
    place.assert_whole(quiet_large)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_an_upload_that_fails_for_good_is_given_up(
    place: Place, quiet_large: Weights, note: Note, number: int
) -> None:
    place.proxy.rewrite(Fault(Kind.INTERNAL_ERROR, "PUT", f"partNumber={number}"))
    with pytest.raises(StorageError, match=r"target/weights"):
        place.quantize(LARGE_PARTS, retries=2)
    note(befell(place.proxy))
    assert_unpublished(place.bucket.objects, place.target)
    place.proxy.rewrite()
    place.quantize(LARGE_PARTS)
    place.assert_whole(quiet_large)


STAYING = {
    "reads": Fault(Kind.SLOW_DOWN, "GET", r"model\.safetensors", r"\nrange:"),
    "commits": Fault(Kind.SLOW_DOWN, "PUT", r"/target/run/commits"),
    "manifest": Fault(Kind.INTERNAL_ERROR, "PUT", r"/target/manifest"),
}


@pytest.mark.parametrize("fault", cases(STAYING))
def test_a_fault_that_stays_is_an_error_and_publishes_nothing(
    place: Place, quiet: Weights, note: Note, fault: Fault
) -> None:
    place.proxy.rewrite(fault)
    with pytest.raises(ArrowQuantError, match="same command") as raised:
        place.quantize(retries=2)
    note(f"{befell(place.proxy)}, {raised.value.kind}")
    assert raised.value.exit_code == 1
    assert place.options["secret"] not in str(raised.value)
    assert_unpublished(place.bucket.objects, place.target)
    place.proxy.rewrite()
    place.quantize()
    place.assert_whole(quiet)


FLIPS = {
    "small objects": Fault(Kind.FLIPPED_BYTE, "GET", r"/target/run/|config\.json", probability=0.4),
    "uploads": Fault(Kind.FLIPPED_UPLOAD, "PUT", r"/target/", probability=0.2),
}


@pytest.mark.parametrize("fault", cases(FLIPS))
def test_a_flipped_byte_that_the_protocol_notices_costs_a_request(
    place: Place, quiet: Weights, note: Note, fault: Fault
) -> None:
    """S3's own checksums, of whole objects and of what is sent."""
    place.proxy.rewrite(fault, seed=8)
    place.quantize()
    note(befell(place.proxy))
    assert place.proxy.injected
    place.assert_whole(quiet)


@pytest.mark.slow
def test_a_flipped_byte_of_the_source_is_noticed_where_reads_are_made_twice(
    place: Place, quiet: Weights, note: Note
) -> None:
    """Nothing else can: safetensors has no checksums, a range has none in S3's protocol, and this is plain http."""
    place.proxy.rewrite(body(Kind.FLIPPED_BYTE, 0.05), seed=8)
    place.quantize(read_twice=True)
    note(befell(place.proxy))
    assert place.proxy.injected
    place.assert_whole(quiet)


@pytest.mark.slow
def test_what_a_dead_attempt_left_at_the_target_is_gone(place: Place, quiet: Weights, note: Note) -> None:
    """A part, and an upload that was neither completed nor given up."""
    objects, name = place.bucket.objects, place.bucket.uri.removeprefix("s3://")
    place.proxy.rewrite(Fault(Kind.SLOW_DOWN, "PUT", r"/target/manifest"))
    with pytest.raises(StorageError):
        place.quantize(retries=3)
    left = "weights/shard=00000/part-dead{}.parquet"
    objects.put(f"{place.target}/{left.format(1)}", b"half of it")
    objects.client.create_multipart_upload(Bucket=name, Key=f"target/{left.format(2)}")
    assert objects.uploads(place.target) == [left.format(2)]
    place.proxy.rewrite()
    place.quantize()
    note("a part and an upload")
    place.assert_whole(quiet)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_a_flipped_byte_of_the_dataset_never_becomes_a_weight(
    place: Place, checkpoint: Source, quiet: Weights, note: Note, seed: int
) -> None:
    place.quantize()
    right = dict(WeightLoader(place.target, storage_options=place.bucket.storage_options))
    place.proxy.rewrite(Fault(Kind.FLIPPED_BYTE, "GET", r"/target/weights", probability=0.3), seed=seed)
    loader = WeightLoader(place.target, storage_options=place.options)
    refused = [name for name, tensor in right.items() if not _loads(loader, name, tensor)]
    note(f"{befell(place.proxy)}, {len(refused)} layers refused")
    assert place.proxy.injected


def _loads(loader: WeightLoader, name: str, right: torch.Tensor) -> bool:
    """False where the layer is refused; fails where it is wrong."""
    try:
        found = loader[name]
    except CorruptWeights:
        return False
    assert found.equal(right), name
    return True


@pytest.mark.slow
def test_verify_finds_a_flipped_byte(place: Place, note: Note) -> None:
    place.quantize()
    place.proxy.rewrite(Fault(Kind.FLIPPED_BYTE, "GET", r"/target/weights"))
    report = verify(place.target, Storage(place.options))
    note(f"{befell(place.proxy)}, {len(report.problems)} problems")
    assert not report.is_sound
    place.proxy.rewrite()
    assert verify(place.target, Storage(place.options)).is_sound


def test_a_source_that_is_replaced_mid_run_is_an_error(place: Place, checkpoint: Source, note: Note) -> None:
    """Half of one checkpoint and half of another is a dataset of neither."""
    content = bytearray((checkpoint.folder / "model.safetensors").read_bytes())
    content[-4:] = b"\0\0\0\0"
    objects, source = place.bucket.objects, f"{place.bucket.uri}/source"
    objects.upload_folder(checkpoint.folder, source)
    reads = 0

    def count(_method: str, path: str) -> None:
        nonlocal reads
        reads += "model.safetensors" in path
        if reads == 60:
            objects.put(f"{source}/model.safetensors", bytes(content))

    place.proxy.on_request = count
    with pytest.raises(ArrowQuantError, match=r"replaced|changed"):
        replace(place, source=source).quantize()
    note(f"replaced at read 60 of {reads}")
    assert_unpublished(objects, place.target)


@pytest.mark.slow
@pytest.mark.parametrize("request_number", [40, 150])
def test_a_server_that_is_killed_and_comes_back(
    checkpoint: Source, quiet: Weights, tmp_path: Path, note: Note, request_number: int
) -> None:
    server = SeaweedFS(tmp_path / "server")
    try:
        bucket = Bucket(server.make_bucket("killed"), server.storage_options, server.objects)
        source = f"{bucket.uri}/source"
        bucket.objects.upload_folder(checkpoint.folder, source)
        with FaultProxy(server.port) as proxy:
            restart = threading.Thread(target=server.restart)
            proxy.on_request = lambda _method, _path: (
                restart.start() if proxy.requests == request_number else None
            )
            place = Place(source, proxy, bucket, server.options_at(proxy.endpoint_url), tmp_path)
            place.quantize(retries=12, backoff=0.2)
            restart.join()
            note(f"killed at request {request_number} of {proxy.requests}")
            place.assert_whole(quiet)
    finally:
        server.stop()


_ON_A_SMALL_DISK = """
set -eu
mount -t tmpfs -o size=6m tmpfs "$TARGET"
set +e
"$@" >"$OUT/first.txt" 2>&1; echo $? >"$OUT/first.code"
ls "$TARGET" >"$OUT/first.ls"; find "$TARGET/weights" -type f >"$OUT/first.parts"
ls "$TARGET/run/commits" >"$OUT/first.commits"
mount -o remount,size=200m "$TARGET"
"$@" >"$OUT/second.txt" 2>&1; echo $? >"$OUT/second.code"
cp -r "$TARGET" "$OUT/copy"
"""


def test_a_full_disk_is_an_error_and_room_is_all_it_takes(
    checkpoint: Source, quiet: Weights, tmp_path: Path, note: Note
) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system allows no mount namespaces")
    target, out = tmp_path / "target", tmp_path / "out"
    target.mkdir()
    out.mkdir()
    (tmp_path / "run.yaml").write_text("run: {block_bytes: 1MiB, shard_bytes: 4MiB, workers: 1}")
    program = [sys.executable, "-m", "arrowquant_dist", "quantize", checkpoint.uri, str(target)]
    subprocess.run(
        [
            "unshare",
            "-rm",
            "sh",
            "-c",
            _ON_A_SMALL_DISK,
            "sh",
            *program,
            "--config",
            str(tmp_path / "run.yaml"),
        ],
        check=True,
        env={**os.environ, "TARGET": str(target), "OUT": str(out)},
    )
    said = (out / "first.txt").read_text()
    assert (out / "first.code").read_text().strip() == "1", said
    assert "No space left" in said
    assert "Traceback" not in said
    assert "manifest.json" not in (out / "first.ls").read_text()
    parts, commits = ((out / f"first.{name}").read_text().split() for name in ("parts", "commits"))
    assert len(parts) == len(commits)  # what could not be finished is gone
    assert (out / "second.code").read_text().strip() == "0", (out / "second.txt").read_text()
    note(f"full after {len(commits)} shards")
    assert_whole(out / "copy", quiet)
    shutil.rmtree(out)
