"""What of aiobotocore has no public name: the connections of a client.

Written for aiobotocore 3.10. Where a client keeps them elsewhere, every request goes through the client as before.
"""

from __future__ import annotations

from typing import Any


def http_session_of(client: Any) -> Any | None:
    """What sends requests that are signed already, with the client's time-outs, proxies and certificates."""
    return getattr(getattr(client, "_endpoint", None), "http_session", None)
