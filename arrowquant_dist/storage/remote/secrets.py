"""Hides what must not be shown: credentials in options and environment, signatures, queries of URLs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

_SHOWN = "***"
_SHORTEST = 6  # minimum characters of a secret; hiding shorter ones would garble ordinary words
# Options whose values may be shown; any other text counts as secret, whatever its library calls it.
_PUBLIC = frozenset(
    (
        *("endpoint_url", "region_name", "profile", "use_ssl", "signature_version", "addressing_style"),
        *(
            "account_name",
            "project",
            "access",
            "consistency",
            "protocol",
            "mode",
            "cache_type",
            "default_cache_type",
        ),
    )
)
_ENVIRONMENT = re.compile(r"(?i)secret|token$|password|access_key|connection_string|api_?key|account_key")
_PATTERNS = (
    (re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?)[^\r\n'\"]+"), rf"\1{_SHOWN}"),
    (re.compile(r"(?i)\b((?:x-amz-)?(?:credential|signature|security-token)=)[^\s&,'\"]+"), rf"\1{_SHOWN}"),
    (re.compile(r"(?i)\b((?:accountkey|sharedaccesssignature|sig)=)[^\s&;,'\"]+"), rf"\1{_SHOWN}"),
    (re.compile(r"(://[^\s?#'\"]*)[?#][^\s'\")]+"), rf"\1?{_SHOWN}"),
    (re.compile(r"://[^\s/@'\"]*@"), "://"),
)


class Secrets:
    """The secrets to hide. options: fsspec's; every text in them that is not an endpoint, region, mode or the like
    counts as secret."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        given = {*_texts(options), *(text for name, text in os.environ.items() if _ENVIRONMENT.search(name))}
        self._values = sorted((text for text in given if len(text) >= _SHORTEST), key=len, reverse=True)

    def hidden_in(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, _SHOWN)
        for pattern, shown in _PATTERNS:
            text = pattern.sub(shown, text)
        return text

    def are_in(self, error: BaseException) -> bool:
        """Whether a traceback of this error and its causes would show a secret."""
        link: BaseException | None = error
        while link is not None:
            text = f"{link} {link!r}"
            if self.hidden_in(text) != text:
                return True
            link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
        return False


def _texts(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, name)
    elif isinstance(value, str) and name not in _PUBLIC:
        yield value
