"""Exports from bucket to bucket: to any place in a bucket, whatever its server does, without harm to others'
objects."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arrowquant_dist import RunConfig
from arrowquant_dist.config import Transfer
from arrowquant_dist.errors import IncompleteDataset, InvalidConfig, PartialRun, SourceChanged, StorageError
from arrowquant_dist.export import ExportOptions, export_dataset
from arrowquant_dist.storage.uris import compared_place
from tests.export.datasets import made_dataset
from tests.integration.program import call
from tests.servers.fault_proxy import FaultProxy
from tests.servers.faults import Fault, Kind
from tests.servers.fixtures import Bucket
from tests.servers.seaweedfs import SeaweedFS

# Files of 10 MiB as V1, each an upload of three parts, and requests that are repeated at once.
OPTIONS = ExportOptions("v1", max_file_bytes="12MiB")
TRANSFER = Transfer(upload_bytes=5 << 20, range_bytes=256 << 10, retries=12, backoff=0.01)
SIDE_FILES = {"config.json": b'{"a": 1}', "README.md": b"# a model"}


def run_with(options: dict[str, Any], **changes: Any) -> RunConfig:
    return RunConfig(engine="inline", workers=2, storage_options=options, transfer=TRANSFER, **changes)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    generator = torch.Generator().manual_seed(1)
    tensors = {f"{i}.weight": torch.randn(1280, 2048, generator=generator) for i in range(2)}
    run = RunConfig(block_bytes=1 << 20, shard_bytes=4 << 20)
    return made_dataset(tmp_path_factory.mktemp("buckets"), tensors, run=run, side_files=SIDE_FILES)


@pytest.fixture(scope="module")
def quiet(local: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The output of an undisturbed export between folders, but for export.json, which names its dataset's place."""
    out = tmp_path_factory.mktemp("quiet") / "out"
    export_dataset(local, out, OPTIONS, RunConfig(engine="inline", workers=1))
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "export.json"}


@pytest.fixture
def dataset(local: str, bucket: Bucket) -> str:
    bucket.objects.upload_folder(Path(local), f"{bucket.uri}/dataset")
    return f"{bucket.uri}/dataset"


def found_at(bucket: Bucket, out: str) -> dict[str, bytes]:
    """All objects there but the record."""
    paths = bucket.objects.sizes(out)
    return {path: bucket.objects.get(f"{out.rstrip('/')}/{path}") for path in paths if path != "export.json"}


def assert_whole(bucket: Bucket, out: str, quiet: dict[str, bytes]) -> None:
    assert found_at(bucket, out) == quiet
    assert "export.json" in bucket.objects.sizes(out)
    assert bucket.objects.uploads(out) == []


@pytest.fixture
def whole_bucket(seaweedfs: SeaweedFS, bucket: Bucket) -> Iterator[str]:
    """Another one, for an output or a dataset that is all of it."""
    with seaweedfs.bucket(f"{bucket.uri.removeprefix('s3://')}-whole") as uri:
        yield uri


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_whole_bucket_may_be_the_output(
    dataset: str, quiet: dict[str, bytes], bucket: Bucket, whole_bucket: str, slash: str
) -> None:
    run = run_with(bucket.storage_options)
    assert not export_dataset(dataset, f"{whole_bucket}{slash}", OPTIONS, run).already_finished
    assert_whole(bucket, whole_bucket, quiet)
    assert export_dataset(dataset, whole_bucket, OPTIONS, run).already_finished


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_whole_bucket_may_be_the_dataset(
    local: str, quiet: dict[str, bytes], bucket: Bucket, whole_bucket: str, slash: str
) -> None:
    bucket.objects.upload_folder(Path(local), whole_bucket)
    out = f"{bucket.uri}/out{slash}"
    export_dataset(f"{whole_bucket}{slash}", out, OPTIONS, run_with(bucket.storage_options))
    assert_whole(bucket, f"{bucket.uri}/out", quiet)


@pytest.mark.parametrize(
    ("target", "out"),
    [
        ("{}/dataset", "{}/dataset"),
        ("{}/dataset/", "{}/dataset/out"),
        ("{}/dataset", "{}/dataset/"),
        ("{}//dataset", "{}/dataset/out"),
        ("{}/./dataset", "{}/dataset/out"),
        ("{}/dataset", "{}/"),
        ("{}/dataset", "{}"),
        ("{}", "{}/out"),
        ("{}/", "{}/out"),
        ("{}/dataset", "s3a:{}/dataset/out"),
        ("s3a:{}/dataset", "{}/dataset"),
    ],
)
@pytest.mark.parametrize("options", [OPTIONS, ExportOptions("v1", overwrite=True)], ids=["new", "overwrite"])
def test_an_output_in_the_dataset_or_around_it_is_refused_however_the_two_are_spelled(
    dataset: str, bucket: Bucket, target: str, out: str, options: ExportOptions
) -> None:
    """At another address of the server, too."""
    before = bucket.objects.sizes(bucket.uri)
    there = bucket.storage_options
    elsewhere = there["client_kwargs"]["endpoint_url"].replace("127.0.0.1", "localhost")
    run = run_with(there, target_storage_options={**there, "client_kwargs": {"endpoint_url": elsewhere}})
    target, out = (place.format(bucket.uri).replace("s3a:s3:", "s3a:") for place in (target, out))
    with pytest.raises(InvalidConfig, match="one is inside the other") as raised:
        export_dataset(target, out, options, run)
    assert raised.value.exit_code == 2
    assert bucket.objects.sizes(bucket.uri) == before


def test_places_that_only_begin_alike_are_two() -> None:
    names = ["s3://b/a", "s3://b/ab", "s3://ba", "s3://b/a/c", "gs://b/a", "memory://b/a", "s3://b/A"]
    assert len({compared_place(name) for name in names}) == len(names)
    assert compared_place("simplecache::s3a://b//a/./") == "s3://b/a"
    assert compared_place("gcs://b") == compared_place("gs://b/") == "gs://b"


FAILING = {
    "SlowDown": (Fault(Kind.SLOW_DOWN, probability=0.15),),
    "InternalError": (Fault(Kind.INTERNAL_ERROR, probability=0.15),),
    "reset before the request": (Fault(Kind.RESET_REQUEST, probability=0.1),),
    "reset in the midst of a range": (Fault(Kind.RESET_BODY, "GET", r"\.parquet", probability=0.2),),
    "half of a range": (Fault(Kind.TRUNCATED_BODY, "GET", r"\.parquet", probability=0.2),),
    "a part that fails": (Fault(Kind.INTERNAL_ERROR, "PUT", "partNumber=2", limit=2),),
    "a part that is changed on its way": (Fault(Kind.FLIPPED_UPLOAD, "PUT", "partNumber=1", limit=1),),
    "a part whose answer is lost": (Fault(Kind.LOST_RESPONSE, "PUT", "partNumber=2", limit=2),),
    "a completion whose answer is lost": (Fault(Kind.LOST_RESPONSE, "POST", "uploadId=", limit=1),),
}


@pytest.mark.parametrize("name", FAILING)
def test_failures_that_pass_change_no_byte_and_leave_no_upload(
    dataset: str, quiet: dict[str, bytes], bucket: Bucket, seaweedfs: SeaweedFS, name: str
) -> None:
    with FaultProxy(seaweedfs.port, *FAILING[name], seed=4) as proxy:
        run = run_with(seaweedfs.options_at(proxy.endpoint_url))
        export_dataset(dataset, f"{bucket.uri}/out", OPTIONS, run)
        assert proxy.injected
    assert_whole(bucket, f"{bucket.uri}/out", quiet)


def test_a_part_that_fails_for_good_ends_it_without_an_upload_and_the_same_command_completes_it(
    dataset: str, quiet: dict[str, bytes], bucket: Bucket, seaweedfs: SeaweedFS
) -> None:
    out = f"{bucket.uri}/out"
    with FaultProxy(seaweedfs.port, Fault(Kind.INTERNAL_ERROR, "PUT", "partNumber=2")) as proxy:
        run = run_with(seaweedfs.options_at(proxy.endpoint_url))
        with pytest.raises((PartialRun, StorageError), match="all retries failed"):
            export_dataset(dataset, out, OPTIONS, run.replace(transfer=replace(TRANSFER, retries=1)))
    assert bucket.objects.uploads(out) == []
    assert found_at(bucket, out) == {}
    export_dataset(dataset, out, OPTIONS, run_with(bucket.storage_options))
    assert_whole(bucket, out, quiet)


def test_an_overwrite_takes_away_the_larger_export_before_it_and_nothing_of_others(
    dataset: str, quiet: dict[str, bytes], bucket: Bucket
) -> None:
    out, run = f"{bucket.uri}/out", run_with(bucket.storage_options)
    export_dataset(dataset, out, ExportOptions("safetensors", max_file_bytes="1MiB"), run)
    assert len(bucket.objects.sizes(out)) > len(quiet) + 1
    for path in ("notes.txt", "more/mine.bin"):
        bucket.objects.put(f"{out}/{path}", b"mine")
    export_dataset(dataset, out, ExportOptions("v1", max_file_bytes="12MiB", overwrite=True), run)
    assert_whole(bucket, out, {**quiet, "notes.txt": b"mine", "more/mine.bin": b"mine"})


def test_who_may_not_write_at_the_output_gets_one_error_that_names_it(
    dataset: str, bucket: Bucket, seaweedfs: SeaweedFS, tmp_path: Path
) -> None:
    config, before = tmp_path / "run.yaml", bucket.objects.sizes(bucket.uri)
    config.write_text(json.dumps({"run": {"storage_options": seaweedfs.reader_options, "engine": "inline"}}))
    out = f"{bucket.uri}/out"
    ended = call("export", dataset, out, "--format", "v1", "--config", config)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("access denied") == 1
    assert f"{out}/" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert seaweedfs.reader_options["secret"] not in ended.stderr
    assert bucket.objects.sizes(bucket.uri) == before
    assert bucket.objects.uploads(bucket.uri) == []


@pytest.mark.parametrize("change", ["other bytes", "longer", "gone"])
def test_a_part_of_the_dataset_that_is_replaced_when_it_is_read_is_refused(
    dataset: str, bucket: Bucket, seaweedfs: SeaweedFS, change: str
) -> None:
    part = next(path for path in bucket.objects.sizes(dataset) if path.startswith("weights/"))
    data = bytearray(bucket.objects.get(f"{dataset}/{part}"))
    data[len(data) // 2] ^= 1
    replaced = threading.Event()

    def replace_it(method: str, path: str) -> None:
        if method != "GET" or "/weights/" not in path or replaced.is_set():
            return
        replaced.set()
        if change == "gone":
            bucket.objects.delete(f"{dataset}/{part}")
        else:
            bucket.objects.put(f"{dataset}/{part}", bytes(data) + b"0" * (change == "longer"))

    with FaultProxy(seaweedfs.port) as proxy:
        proxy.on_request = replace_it
        run = run_with(seaweedfs.options_at(proxy.endpoint_url))
        with pytest.raises((SourceChanged, IncompleteDataset, PartialRun)) as raised:
            export_dataset(dataset, f"{bucket.uri}/out", OPTIONS, run)
    assert re.search("a part .* is gone" if change == "gone" else "changed", str(raised.value))
    assert f"{dataset}/{part}" in str(raised.value)
    assert not {"export.json", "config.json"} & bucket.objects.sizes(f"{bucket.uri}/out").keys()
    assert bucket.objects.uploads(bucket.uri) == []
