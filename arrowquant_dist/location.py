"""Places as callers give them, a text or a path object, as the text that all of the package works with."""

from __future__ import annotations

import os
import re
import reprlib
from pathlib import Path

from arrowquant_dist.errors import InvalidConfig

Location = str | os.PathLike[str]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def location(place: Location, key: str) -> str:
    """`place` as text. key: what the caller calls it, for errors.

    Raises InvalidConfig for what is neither text nor a path object, for bytes, for nothing at all, and for a URL in a
    pathlib.Path, which keeps one slash of two and would be another place.
    """
    if isinstance(place, (bytes, bytearray)):
        raise InvalidConfig(f"{key}: must be a text or a path, not bytes; decode it first, with os.fsdecode")
    if not isinstance(place, (str, os.PathLike)):
        kind = "None" if place is None else f"a value of type {type(place).__name__}"
        raise InvalidConfig(f'{key}: must be a text or a path, not {kind}; pass "folder/model" or a URL')
    try:
        text = os.fspath(place)
    except TypeError as error:
        message = f"{key}: {type(place).__name__} gives no path of this machine; pass its URL as a text"
        raise InvalidConfig(message) from error
    if isinstance(text, bytes):
        raise InvalidConfig(f"{key}: must be a path of text, not of bytes; decode it first, with os.fsdecode")
    if not text or "\0" in text:
        raise InvalidConfig(f"{key}: is {reprlib.repr(text)}, which is no place; pass a path or a URL")
    if not isinstance(place, str) and _is_url(text):
        message = f"{key}: {reprlib.repr(text)} was a URL before it became a path; pass the URL as a text"
        raise InvalidConfig(message)
    return text


def without_credentials(uri: str) -> str:
    """`uri` without user:password@ and without the query, where signed URLs have their signature."""
    if "://" not in uri:
        return uri
    return re.sub(r"://[^/@]*@", "://", re.sub(r"[?#].*", "", uri))


def _is_url(path: str) -> bool:
    """Whether a path object's text is what becomes of a URL: `s3:/bucket/model`."""
    head = path.partition("/")[0]
    return _SCHEME.fullmatch(head) is not None and not Path(head).exists()
