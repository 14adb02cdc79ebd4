"""Places that callers give as texts or path objects, turned into the text that the whole package works with."""

from __future__ import annotations

import os
import re
import reprlib
from pathlib import Path

from arrowquant_dist.errors import InvalidConfig

Location = str | os.PathLike[str]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def location(place: Location, key: str) -> str:
    """`place` as text. key: the caller's name for it, used in errors.

    Raises InvalidConfig for values that are neither text nor a path object, for bytes, for empty texts, and for a URL
    in a pathlib.Path, which turns two slashes into one and so names another place.
    """
    if isinstance(place, (bytes, bytearray)):
        raise InvalidConfig(
            f"{key}: must be a string or a path, not bytes; decode it first, with os.fsdecode"
        )
    if not isinstance(place, (str, os.PathLike)):
        kind = "None" if place is None else f"a value of type {type(place).__name__}"
        raise InvalidConfig(f'{key}: must be a string or a path, not {kind}; pass "folder/model" or a URL')
    try:
        text = os.fspath(place)
    except TypeError as error:
        message = f"{key}: {type(place).__name__} is not a local path; pass its URL as a string"
        raise InvalidConfig(message) from error
    if isinstance(text, bytes):
        raise InvalidConfig(f"{key}: must be a path of text, not of bytes; decode it first, with os.fsdecode")
    if not text or "\0" in text:
        raise InvalidConfig(f"{key}: is {reprlib.repr(text)}, which is not a place; pass a path or a URL")
    if not isinstance(place, str) and _is_url(text):
        message = f"{key}: {reprlib.repr(text)} was a URL before it became a path; pass the URL as a string"
        raise InvalidConfig(message)
    return text


def without_credentials(uri: str) -> str:
    """`uri` without user:password@ and without its query, which holds the signature of signed URLs."""
    if "://" not in uri:
        return uri
    return re.sub(r"://[^/@]*@", "://", re.sub(r"[?#].*", "", uri))


def _is_url(path: str) -> bool:
    """Whether the text of a path object looks like a URL that lost a slash: `s3:/bucket/model`."""
    head = path.partition("/")[0]
    return _SCHEME.fullmatch(head) is not None and not Path(head).exists()
