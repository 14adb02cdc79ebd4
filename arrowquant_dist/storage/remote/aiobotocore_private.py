"""What is used of aiobotocore beyond its public names: the connections of a client.

Written for aiobotocore 3.10. If a client keeps them elsewhere, every request goes through the client instead.
"""

from __future__ import annotations

from typing import Any


def http_session_of(client: Any) -> Any | None:
    """The session that sends requests that are signed already, with the client's time-outs, proxies and certificates;
    None if the client has no such attribute."""
    return getattr(getattr(client, "_endpoint", None), "http_session", None)
