"""URIs as text: which are local, what their parts are, and what of them may be shown."""

from __future__ import annotations

import os
import re

_SAME_PROTOCOLS = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}


def is_local(uri: str) -> bool:
    """Whether `uri` is a path on this machine: no protocol, `file://` or `local://`."""
    protocol, separator, _ = uri.partition("://")
    return not separator or protocol in ("file", "local")


def split_uri(uri: str) -> tuple[str, str]:
    """Folder and last name: "s3://b/dir/f.bin" → ("s3://b/dir", "f.bin"), "x.bin" → (".", "x.bin")."""
    head, _, name = uri.rstrip("/").rpartition("/")
    if head.endswith(":/") or not name:  # a bare bucket or "/" has no folder
        return uri, ""
    return head or ("/" if uri.startswith("/") else "."), name


def redact(uri: str) -> str:
    """`uri` without what may be secret: user:password@ of each authority, and the query. Local paths are unchanged.

    In abfs://container@account.dfs.core.windows.net, Azure's form of a location, the container is kept: it is not a
    user.
    """
    if is_local(uri):
        return uri
    bare = re.sub(r"[?#][^:]*?(?=::|$)", "", uri)
    return re.sub(r"(?<![A-Za-z])(abfss?://[^/@:]*@)|://[^/@]*@", lambda found: found[1] or "://", bare)


def is_ambiguous(uri: str) -> bool:
    """Whether a URL has names that object stores and the layers before them interpret differently: `a//b`, `.` and
    `..` are names of their own to some, and another way to write `a/b` to others."""
    scheme, _, path = uri.partition("://")
    path = path.lstrip("/") if scheme == "memory" else path
    names = path.rstrip("/").split("/")
    return not is_local(uri) and (path.endswith("//") or not {"", ".", ".."}.isdisjoint(names))


def real_place(uri: str) -> str:
    """One canonical spelling of a location: local paths without links and `..`, so that two names of one location
    compare equal. What cannot be resolved, such as a link that leads to itself or a name that is too long, stays as
    spelled."""
    if not is_local(uri):
        return uri.rstrip("/")
    return os.path.realpath(os.path.expanduser(uri.rpartition("://")[2]))  # noqa: PTH111 - pathlib raises for both


def compared_place(uri: str) -> str:
    """`real_place`, for comparisons only. A URL loses what may be spelled in several ways for one location: aliases
    of its protocol, caching protocols before it, empty names and `.`. Endpoints are not compared: a bucket is
    identified by its name, and one server has several addresses."""
    if is_local(uri):
        return real_place(uri)
    scheme, _, path = uri.rpartition("::")[2].partition("://")
    names = [name for name in path.split("/") if name not in {"", "."}]
    return "/".join([f"{_SAME_PROTOCOLS.get(scheme, scheme)}:/", *names])


def real_places(uri: str) -> tuple[str, str]:
    """Where a file is, and where its bytes are: a local file may be a link into a cache."""
    folder, _, name = uri.rpartition("/")
    return f"{real_place(folder)}/{name}", real_place(uri)


def lies_within(uri: str, folder: str) -> bool:
    """Whether a file, or the file that it links to, is in the folder."""
    return any(place.startswith(f"{real_place(folder)}/") for place in real_places(uri))
