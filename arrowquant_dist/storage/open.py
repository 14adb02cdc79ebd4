"""Opens the store for a URI."""

from __future__ import annotations

from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.uris import is_local, redact

_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs")


def open_store(uri: str, storage: Storage = DEFAULT_STORAGE) -> Store:
    """The store at `uri`: a local path, `file://` or any fsspec URL, accessed with the options of `storage`. Makes no
    requests.

    Local paths go straight to the operating system, everything else through fsspec. Raises InvalidConfig for an
    unknown protocol and a URL without a bucket, MissingDependency if the protocol's package is not installed.
    """
    if is_local(uri):
        from arrowquant_dist.storage.local import LocalStore

        return LocalStore(uri, storage.direct_writes)
    if uri.partition("://")[0] in _BUCKETS and not uri.partition("://")[2].partition("/")[0]:
        raise InvalidConfig("the URL has no bucket; put one after ://", uri=redact(uri))
    from arrowquant_dist.storage.remote import RemoteStore

    return RemoteStore(uri, storage)
