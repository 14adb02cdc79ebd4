"""TCP ports of 127.0.0.1 for servers."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket

GRPC_OFFSET = 10_000  # SeaweedFS also listens on each port plus this
# Together with their twins, they are below Linux' ephemeral ports (32,768 and up) and above those of Ray's workers
# (10,002 to 19,999).
_LOWEST, _HIGHEST = 20_000, 22_700


def free_ports(count: int) -> list[int]:
    """`count` ports that are free, and whose twins GRPC_OFFSET above are free too.

    Each of the processes that share the suite has ports of its own, because nobody may be listening yet on a port that
    another process has found.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % processes
    found: list[int] = []
    while len(found) < count:
        port = _LOWEST + number + processes * secrets.randbelow((_HIGHEST - _LOWEST) // processes)
        if port not in found and _is_free(port) and _is_free(port + GRPC_OFFSET):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
