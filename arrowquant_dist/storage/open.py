"""From a URI to the store that serves it."""

from __future__ import annotations

from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.uris import is_local


def open_store(uri: str, storage: Storage = DEFAULT_STORAGE) -> Store:
    """The store at `uri`: a local path, `file://` or any fsspec URL, reached by `storage`. No requests.

    Local paths go straight to the operating system, everything else through fsspec.
    Raises InvalidConfig for an unknown protocol, MissingDependency where its package is not installed.
    """
    if is_local(uri):
        from arrowquant_dist.storage.local import LocalStore

        return LocalStore(uri, storage.direct_writes)
    from arrowquant_dist.storage.remote import RemoteStore

    return RemoteStore(uri, storage)
