"""URIs as text: which are of this machine, their parts, and what of them may be shown."""

from __future__ import annotations

import os
import re

_SAME_PROTOCOLS = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}


def is_local(uri: str) -> bool:
    """Whether `uri` is a path of this machine: no protocol, `file://` or `local://`."""
    protocol, separator, _ = uri.partition("://")
    return not separator or protocol in ("file", "local")


def split_uri(uri: str) -> tuple[str, str]:
    """Folder and last name: "s3://b/dir/f.bin" → ("s3://b/dir", "f.bin"), "x.bin" → (".", "x.bin")."""
    head, _, name = uri.rstrip("/").rpartition("/")
    if head.endswith(":/") or not name:  # a bare bucket or "/" has no folder
        return uri, ""
    return head or ("/" if uri.startswith("/") else "."), name


def redact(uri: str) -> str:
    """`uri` without what may be secret: user:password@ of each authority, and the query. Local paths stay.

    abfs://container@account.dfs.core.windows.net is how Azure's clients name a place: a container is no user.
    """
    if is_local(uri):
        return uri
    bare = re.sub(r"[?#][^:]*?(?=::|$)", "", uri)
    return re.sub(r"(?<![A-Za-z])(abfss?://[^/@:]*@)|://[^/@]*@", lambda found: found[1] or "://", bare)


def is_ambiguous(uri: str) -> bool:
    """Whether a URL has names that object stores and what is before them do not agree about: `a//b`, `.`, `..` are
    names of their own to some, and another way to say `a/b` to others."""
    scheme, _, path = uri.partition("://")
    path = path.lstrip("/") if scheme == "memory" else path
    names = path.rstrip("/").split("/")
    return not is_local(uri) and (path.endswith("//") or not {"", ".", ".."}.isdisjoint(names))


def real_place(uri: str) -> str:
    """One spelling of a place: local ones without links and `..`, so that no other name hides that two are one. What
    cannot be looked up, a link that leads to itself or a name that is too long, stays as it is spelled."""
    if not is_local(uri):
        return uri.rstrip("/")
    return os.path.realpath(os.path.expanduser(uri.rpartition("://")[2]))  # noqa: PTH111 - pathlib raises for both


def compared_place(uri: str) -> str:
    """`real_place` for comparisons alone. A URL loses what one place may be spelled with and without: another name of
    its protocol, what caches it, empty names and `.`. Endpoints are not compared: a bucket's name is what it is known
    by, and one server has several addresses."""
    if is_local(uri):
        return real_place(uri)
    scheme, _, path = uri.rpartition("::")[2].partition("://")
    names = [name for name in path.split("/") if name not in {"", "."}]
    return "/".join([f"{_SAME_PROTOCOLS.get(scheme, scheme)}:/", *names])


def real_places(uri: str) -> tuple[str, str]:
    """Where a file is, and where its bytes are: a local one may be a link into a cache."""
    folder, _, name = uri.rpartition("/")
    return f"{real_place(folder)}/{name}", real_place(uri)


def lies_within(uri: str, folder: str) -> bool:
    """Whether a file, or what it is a link to, is in the folder."""
    return any(place.startswith(f"{real_place(folder)}/") for place in real_places(uri))
