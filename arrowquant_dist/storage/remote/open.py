"""Opens the client for a URI and its options."""

from __future__ import annotations

from typing import Any

from arrowquant_dist.config import Storage
from arrowquant_dist.errors import InvalidConfig, MissingDependency
from arrowquant_dist.storage.remote.client import Client
from arrowquant_dist.storage.remote.secrets import Secrets
from arrowquant_dist.storage.traffic import Traffic

_S3 = ("s3", "s3a")
_EXTRAS = {"gs": "gcs", "gcs": "gcs", **dict.fromkeys(("az", "abfs", "abfss"), "azure")}  # {protocol: extra}


def is_s3(uri: str) -> bool:
    """Whether `uri` is served by S3's own client rather than through fsspec's common interface."""
    return uri.partition("://")[0] in _S3


def open_client(uri: str, storage: Storage, traffic: Traffic) -> Client:
    """The client for `uri`. Makes no requests. Raises InvalidConfig for an unknown protocol or option,
    MissingDependency if a package is missing."""
    secrets = Secrets(storage.options)
    try:
        return _open(uri, storage, traffic)
    except ImportError as error:
        extra = _EXTRAS.get(uri.partition("://")[0])
        hint = f"; pip install 'arrowquant-dist[{extra}]'" if extra is not None else ""
        message = f"this protocol needs a package: {secrets.hidden_in(str(error))}{hint}"
        raise MissingDependency(message, uri=uri) from error
    except (ValueError, TypeError, KeyError) as error:
        message = (
            f"fsspec rejects this URI or its storage_options ({secrets.hidden_in(str(error))}); check them"
        )
        raise InvalidConfig(message, uri=uri) from (None if secrets.are_in(error) else error)


def _open(uri: str, storage: Storage, traffic: Traffic) -> Client:
    from fsspec.core import url_to_fs

    options: dict[str, Any] = dict(storage.options)
    if is_s3(uri):
        from arrowquant_dist.storage.remote.s3 import S3Client, s3_options

        fs, root = url_to_fs(uri, **s3_options(options, storage.transfer))
        return S3Client(fs, root, storage.transfer, traffic)
    from arrowquant_dist.storage.remote.filesystem import FileSystemClient

    fs, root = url_to_fs(uri, **options)
    return FileSystemClient(fs, str(root), storage.transfer, traffic)
