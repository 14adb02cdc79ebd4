"""Servers as processes that never outlive the one that started them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.waiting import until


class ServerProcess:
    """A server that is ready when the constructor returns.

    command: command that starts it, in `folder`, where log.txt gets its output. is_ready: called until it is true.
    environment: variables in addition to those of this process.
    """

    def __init__(
        self,
        command: list[str],
        folder: Path,
        is_ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log = folder / "log.txt"
        with self._log.open("ab") as log:
            # It has a session of its own, so that Ctrl-C does not end it while the tests still need it to clean up.
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._watchdog = _watch(self._process.pid)
        self._wait(is_ready)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """Sends SIGKILL: like a power cut, without what a shutdown would flush."""
        for process in (self._watchdog, self._process):
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def end(self) -> None:
        """Sends SIGTERM, at which it ends itself and the processes that it started."""
        self._process.terminate()
        self._process.wait()
        self.kill()

    def _wait(self, is_ready: Callable[[], bool]) -> None:
        def runs_and_is_ready() -> bool:
            code = self._process.poll()
            assert code is None, f"it ended with {code}: {self._log.read_text(errors='replace')[-2000:]}"
            return is_ready()

        until(runs_and_is_ready)


def listens(port: int) -> bool:
    """Whether a process listens on that port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _watch(pid: int) -> subprocess.Popen[bytes]:
    """Starts a process that kills `pid` when this process ends, in whatever way: its stdin ends then."""
    return subprocess.Popen(
        ["/bin/sh", "-c", f"cat; kill -9 {pid}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
