"""Where credentials and endpoints come from, what errors about them say, and what they never show."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from arrowquant_dist.config import Storage, Transfer
from arrowquant_dist.errors import ArrowQuantError, InvalidConfig, NotFound, StorageError
from arrowquant_dist.storage.base import ByteRange
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.remote.secrets import Secrets
from tests.logged import Logged
from tests.servers.fixtures import Bucket
from tests.servers.ports import free_ports
from tests.servers.seaweedfs import SeaweedFS

PATIENT = Transfer()  # what does not pass must not wait for it
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"  # noqa: S105 - AWS' own example


def options(seaweedfs: SeaweedFS, **changes: Any) -> dict[str, Any]:
    return {**seaweedfs.storage_options, **changes}


def shown(error: BaseException) -> str:
    """Everything that a log of the error would have."""
    return "".join(traceback.format_exception(error)) + repr(error) + str(error)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"secret": SECRET}, r"secret does not belong to the access key.*SignatureDoesNotMatch"),
        ({"key": "AKIANOBODYKNOWSME000"}, r"access key is not known.*InvalidAccessKeyId"),
        ({"key": None, "secret": None, "anon": True}, "access denied"),
    ],
)
def test_wrong_credentials_fail_at_once_and_are_not_shown(
    seaweedfs: SeaweedFS,
    bucket: Bucket,
    logged: Logged,
    changes: dict[str, Any],
    hint: str,
) -> None:
    store = open_store(bucket.uri, Storage(options(seaweedfs, **changes), PATIENT))
    with logged.at_level(logging.INFO), pytest.raises(StorageError, match=hint) as caught:
        store.read_range("x", ByteRange(0, 10))
    assert store.traffic.total.retries == 0
    everything = shown(caught.value) + logged.text + repr(store) + repr(Storage(changes))
    assert not any(value in everything for value in (SECRET, seaweedfs.secret, seaweedfs.key))


def test_a_bucket_that_is_not_there_is_not_found_at_once(seaweedfs: SeaweedFS) -> None:
    store = open_store("s3://never-made/x", Storage(seaweedfs.storage_options, PATIENT))
    for call in (store.list, lambda: store.read("y"), lambda: store.read_range("y", ByteRange(0, 1))):
        with pytest.raises(NotFound, match="bucket does not exist; create it") as caught:
            call()
        assert caught.value.exit_code == 2
    assert store.traffic.total.retries == 0


def test_an_endpoint_whose_name_nobody_knows_fails_at_once() -> None:
    wrong = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": "http://nosuchhost.invalid:1"}}
    store = open_store("s3://b", Storage(wrong, PATIENT))
    with pytest.raises(StorageError, match=r"nosuchhost\.invalid"):
        store.read("x")
    assert store.traffic.total.retries == 0


def test_a_server_that_is_down_is_asked_again() -> None:
    wrong = {
        "key": "k",
        "secret": "s",
        "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{free_ports(1)[0]}"},
    }
    store = open_store("s3://b", Storage(wrong, Transfer(retries=3, backoff=0.01)))
    with pytest.raises(StorageError, match="run the same command again"):
        store.read("x")
    assert store.traffic.total.retries == 3


_READ = """
import sys
from arrowquant_dist.config import Storage
from arrowquant_dist.storage.base import ByteRange
from arrowquant_dist.storage.open import open_store
store = open_store(sys.argv[1], Storage())
print(store.read_range("x", ByteRange(0, store.size("x"))).tobytes().decode())
"""


def read_elsewhere(uri: str, environment: dict[str, str]) -> str:
    """What another process reads with nothing but this environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_"))}
    command = [sys.executable, "-c", _READ, uri]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr


def test_credentials_and_endpoint_come_from_the_environment(seaweedfs: SeaweedFS, bucket: Bucket) -> None:
    bucket.objects.put(f"{bucket.uri}/x", b"from the environment")
    environment = {
        "AWS_ACCESS_KEY_ID": seaweedfs.key,
        "AWS_SECRET_ACCESS_KEY": seaweedfs.secret,
        "AWS_ENDPOINT_URL": seaweedfs.endpoint_url,
    }
    assert read_elsewhere(bucket.uri, environment) == "from the environment"


def test_credentials_and_endpoint_come_from_fsspecs_configuration(
    seaweedfs: SeaweedFS, bucket: Bucket, tmp_path: Path
) -> None:
    bucket.objects.put(f"{bucket.uri}/x", b"from the configuration")
    (tmp_path / "s3.json").write_text(json.dumps({"s3": seaweedfs.storage_options}))
    environment = {"FSSPEC_CONFIG_DIR": str(tmp_path)}
    assert read_elsewhere(bucket.uri, environment) == "from the configuration"


def test_no_credentials_at_all_is_said(seaweedfs: SeaweedFS, bucket: Bucket, tmp_path: Path) -> None:
    environment = {
        "AWS_ENDPOINT_URL": seaweedfs.endpoint_url,
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(tmp_path),
    }
    assert "no credentials were found; set them in the environment" in read_elsewhere(bucket.uri, environment)


def test_the_users_own_botocore_settings_count(seaweedfs: SeaweedFS, bucket: Bucket) -> None:
    from arrowquant_dist.storage.remote.s3 import s3_options

    own = {"config_kwargs": {"read_timeout": 7, "retries": {"total_max_attempts": 3}}}
    config = s3_options(options(seaweedfs, **own), PATIENT)["config_kwargs"]
    assert config["read_timeout"] == 7
    assert config["retries"] == {"total_max_attempts": 3}
    assert config["connect_timeout"] == PATIENT.connect_timeout


@pytest.mark.parametrize(
    "uri",
    [
        "https://host/model.safetensors?X-Amz-Credential=AKIA%2F&X-Amz-Signature=abcdef",
        "s3://key:secret@bucket/model",
        "https://user:password@host/model.safetensors",
    ],
)
def test_a_uri_with_something_secret_in_it_is_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(InvalidConfig, match="use storage_options") as caught:
        open_store(uri)
    assert not any(word in shown(caught.value) for word in ("abcdef", "AKIA", ":secret", "password"))


@pytest.mark.parametrize(
    "said",
    [
        f"no such key {SECRET} here",
        "GET https://b.s3.amazonaws.com/k?X-Amz-Signature=0a1b2c failed",
        "Authorization: AWS4-HMAC-SHA256 Credential=0a1b2c/20260101, Signature=0a1b2c",
        "{'Authorization': 'Bearer 0a1b2c'}",
        "proxy http://user:0a1b2c@proxy:3128 refused",
        "sent x-amz-security-token=0a1b2c&x=1",
        "connection AccountName=a;AccountKey=0a1b2c;x refused",
        "token sv=2026&sig=0a1b2c refused",
    ],
)
def test_errors_of_libraries_are_shown_without_what_is_secret_in_them(said: str) -> None:
    hidden = Secrets({"client_kwargs": {"aws_secret_access_key": SECRET}}).hidden_in(said)
    assert SECRET not in hidden
    assert "0a1b2c" not in hidden
    assert hidden.split()[0] == said.split(maxsplit=1)[0]


def test_what_is_not_secret_stays_readable() -> None:
    said = "An error occurred (SlowDown) at http://127.0.0.1:9000/bucket/key: reduce your rate"
    hidden = Secrets({"key": "AKIAEXAMPLE", "client_kwargs": {"endpoint_url": "http://127.0.0.1:9000"}})
    assert hidden.hidden_in(said) == said


def test_a_storage_without_conditional_creates_is_refused_as_a_target() -> None:
    with pytest.raises(ArrowQuantError, match="choose a target on local disk, s3://, gs:// or az://"):
        open_store("http://127.0.0.1:9/x").create("run/plan.arrow", b"")
