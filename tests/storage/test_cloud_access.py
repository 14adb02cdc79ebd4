"""Credentials and URLs of storages that are only reached through their fsspec packages."""

from __future__ import annotations

import logging
import traceback

import pytest

from arrowquant_dist.config import Storage, Transfer
from arrowquant_dist.errors import InvalidConfig, MissingDependency, StorageError
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.remote.faults import translated
from arrowquant_dist.storage.remote.secrets import Secrets
from tests.logged import Logged
from tests.servers.azurite import Azurite


@pytest.mark.parametrize(
    ("uri", "variable"),
    [
        ("s3://b/x", "AWS_SECRET_ACCESS_KEY"),
        ("gs://b/x", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://c/x", "AZURE_STORAGE_CONNECTION_STRING"),
        ("abfs://c@account.dfs.core.windows.net/x", "AZURE_STORAGE_CONNECTION_STRING"),
        ("hf://someone/model/x", "HF_TOKEN"),
    ],
)
def test_whoever_is_denied_hears_where_credentials_are_set(uri: str, variable: str) -> None:
    error = translated(PermissionError("no"), uri, None, Secrets({}))
    assert isinstance(error, StorageError)
    assert (
        f"access denied; check what these credentials may do, or use others: set them in the environment ({variable}"
        in (str(error).replace("AWS_ACCESS_KEY_ID, ", ""))
    )


def test_a_wrong_key_of_azure_is_one_line_without_it(azurite: Azurite, logged: Logged) -> None:
    connection = azurite.storage_options["connection_string"]
    key = connection.split("AccountKey=")[1].split(";")[0]
    wrong = "Q" * 20 + key[20:]
    options = {"connection_string": connection.replace(key, wrong)}
    with (
        logged.at_level(logging.INFO),
        pytest.raises(StorageError, match=r"access denied.*AZURE_STORAGE") as caught,
    ):
        open_store(f"{azurite.uri}/x", Storage(options, Transfer())).read("y")
    assert str(caught.value).startswith("az://container/x/y: ")
    assert len(str(caught.value).splitlines()) == 1
    shown = "".join(traceback.format_exception(caught.value)) + logged.text
    assert wrong not in shown


@pytest.mark.parametrize(
    ("uri", "extra"),
    [("gs://b/x", "gcs"), ("az://c/x", "azure"), ("abfs://c@a.dfs.core.windows.net/x", "azure")],
)
def test_a_storage_whose_package_is_not_here_names_the_extra_that_installs_it(
    uri: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object) -> None:
        raise ImportError("no such package")

    monkeypatch.setattr("arrowquant_dist.storage.remote.open._open", absent)
    with pytest.raises(MissingDependency, match=rf"pip install 'arrowquant-dist\[{extra}\]'") as caught:
        open_store(uri, Storage({}))
    assert caught.value.exit_code == 2


def test_options_that_name_no_account_are_bad_input() -> None:
    with pytest.raises(InvalidConfig, match="account_name") as caught:
        open_store("az://container/x", Storage({}))
    assert caught.value.exit_code == 2


def test_a_place_is_named_as_azures_own_clients_do(azurite: Azurite) -> None:
    uri = f"abfs://{azurite.uri.removeprefix('az://')}@devstoreaccount1.dfs.core.windows.net/named/so"
    store = open_store(uri, Storage(azurite.storage_options))
    assert store.create("x", b"1")
    assert not store.create("x", b"2")
    assert [info.path for info in store.list()] == ["x"]
    assert azurite.get("named/so/x") == b"1"
    assert store.url("x") == f"{uri}/x"


def test_what_a_library_logs_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    open_store("memory://quiet")
    logger = logging.getLogger("fsspec")
    propagates, logger.propagate = logger.propagate, False  # as in a program that set up no logging
    try:
        logger.error("a request failed, and this is its traceback")
    finally:
        logger.propagate = propagates
    assert capfd.readouterr().err == ""
