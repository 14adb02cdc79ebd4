"""Fixtures: `seaweedfs`, `gcs` and `azurite`, the session's servers, started at first use; `bucket`, a bucket of the
test's own."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import JSONFileLoader, Loader, create_loader

from tests.servers.azurite import PROGRAM, Azurite
from tests.servers.gcs import Gcs
from tests.servers.llama_cpp import LlamaCpp, llama_cpp_packages
from tests.servers.objects import Objects
from tests.servers.seaweedfs import SeaweedFS

_BUCKETS_AT_ONCE = 8
_LISTS = {"endpoints", "partitions", "sdk-default-configuration"}


@dataclass(frozen=True)
class Bucket:
    """A bucket. uri: s3://name. storage_options: options for fsspec. objects: access to its content by other means."""

    uri: str
    storage_options: dict[str, Any]
    objects: Objects


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", _with_lists_once(JSONFileLoader.load_file))
        patch.setattr(Loader, "load_service_model", _once(create_loader().load_service_model))
        server = SeaweedFS(tmp_path_factory.mktemp("seaweedfs"), volumes=3)
        yield server
        server.stop()


def _with_lists_once(load: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """botocore's reader of its data files, with the lists of Amazon's endpoints and settings read only once. Each new
    session, of which tests make hundreds, would take 37 ms of CPU for that. Nobody changes these lists."""

    @cache
    def once(path: str) -> Any:
        return load(JSONFileLoader(), path)

    return lambda loader, path: once(path) if Path(path).name in _LISTS else load(loader, path)


def _once(load: Callable[..., Any]) -> Callable[..., Any]:
    """The same for the description of S3's requests and answers, which takes 80 ms of CPU for each client. Clients of
    one session share it anyway."""
    once = cache(load)
    return lambda _loader, *names, **options: once(*names, **options)


@pytest.fixture(scope="session")
def empty_buckets(seaweedfs: SeaweedFS) -> Iterator[str]:
    """An endless supply of URIs, each of a new bucket."""

    def several() -> Iterator[str]:
        while True:
            names = [f"test-{secrets.token_hex(6)}" for _ in range(_BUCKETS_AT_ONCE)]
            yield from seaweedfs.make_buckets(names)

    return several()


@pytest.fixture
def bucket(seaweedfs: SeaweedFS, empty_buckets: Iterator[str]) -> Iterator[Bucket]:
    uri = next(empty_buckets)
    yield Bucket(uri, seaweedfs.storage_options, seaweedfs.objects)
    seaweedfs.drop_bucket(uri.removeprefix("s3://"))


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gcs]:
    with pytest.MonkeyPatch.context() as environment:
        # The emulator does not support Google's newer protocol, which gcsfs would try first.
        environment.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        server = Gcs(tmp_path_factory.mktemp("gcs"))
        yield server
        server.stop()


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    if shutil.which(PROGRAM) is None:
        pytest.skip("azurite is not installed (npm install -g azurite)")
    server = Azurite(tmp_path_factory.mktemp("azurite"))
    yield server
    server.stop()


@pytest.fixture
def llama_cpp(tmp_path: Path) -> Iterator[Callable[..., LlamaCpp]]:
    """Starts llama.cpp on a GGUF file, with the other arguments of LlamaCpp: one at a time, and ended with the test."""
    running: list[LlamaCpp] = []

    def serve(model: Path, *, embeddings: bool = False) -> LlamaCpp:
        while running:
            running.pop().stop()
        folder = tmp_path / f"llama.cpp-{model.parent.name}"
        running.append(LlamaCpp(llama_cpp_packages(), model, folder, embeddings=embeddings))
        return running[0]

    yield serve
    while running:
        running.pop().stop()
