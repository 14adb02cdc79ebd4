"""The server is real: it keeps data when it is killed, refuses wrong signatures, and ends with the process that started
it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.processes import is_alive
from tests.servers.fixtures import Bucket
from tests.servers.objects import Objects
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import until


def test_a_fresh_bucket_is_empty_and_keeps_what_is_put(bucket: Bucket) -> None:
    assert bucket.objects.sizes(bucket.uri) == {}
    bucket.objects.put(f"{bucket.uri}/a/b", b"12345")
    assert bucket.objects.sizes(bucket.uri) == {"a/b": 5}
    assert bucket.objects.sizes(f"{bucket.uri}/a") == {"b": 5}
    assert bucket.objects.get(f"{bucket.uri}/a/b") == b"12345"


def test_a_wrong_secret_is_refused(seaweedfs: SeaweedFS, bucket: Bucket) -> None:
    stranger = Objects(seaweedfs.endpoint_url, seaweedfs.key, "wrong")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        stranger.put(f"{bucket.uri}/a", b"")


def test_a_conditional_put_is_refused_when_the_object_is_there(bucket: Bucket) -> None:
    name = bucket.uri.removeprefix("s3://")
    bucket.objects.client.put_object(Bucket=name, Key="a", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        bucket.objects.client.put_object(Bucket=name, Key="a", Body=b"second", IfNoneMatch="*")
    assert bucket.objects.get(f"{bucket.uri}/a") == b"first"


def test_an_open_upload_is_listed_until_it_is_aborted(bucket: Bucket) -> None:
    bucket.objects.client.create_multipart_upload(Bucket=bucket.uri.removeprefix("s3://"), Key="a/part")
    assert bucket.objects.uploads(bucket.uri) == ["a/part"]
    assert bucket.objects.uploads(f"{bucket.uri}/b") == []
    bucket.objects.clear(bucket.uri.removeprefix("s3://"))
    assert bucket.objects.uploads(bucket.uri) == []


@pytest.mark.slow
def test_data_survive_a_kill(tmp_path: Path) -> None:
    server = SeaweedFS(tmp_path / "data")
    try:
        uri = server.make_bucket("kept") + "/object"
        server.objects.put(uri, bytes(1 << 20))
        server.kill()
        server.restart()
        assert server.objects.get(uri) == bytes(1 << 20)
    finally:
        server.stop()


_START_AND_DIE = """
import os, signal, sys
from pathlib import Path
from tests.servers.seaweedfs import SeaweedFS
server = SeaweedFS(Path(sys.argv[1]))
print(server._server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _START_AND_DIE, tmp_path / "data"],
        capture_output=True,
        check=False,
    )
    pid = int(done.stdout)
    until(lambda: not is_alive(pid))
