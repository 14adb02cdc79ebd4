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

    command: what starts it, in `folder`, where log.txt has its output. is_ready: asked again and again.
    environment: on top of this process's.
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
            # A session of its own: Ctrl-C on the tests must not take it from under their clean-up.
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
        """SIGKILL: like a power cut, without what a shutdown would flush."""
        for process in (self._watchdog, self._process):
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def end(self) -> None:
        """SIGTERM, upon which it ends by itself and takes what it started along."""
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
    """Whether somebody does on that port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _watch(pid: int) -> subprocess.Popen[bytes]:
    """A process that outlives this one by a moment, to kill `pid`: its stdin ends when this process does, however."""
    return subprocess.Popen(
        ["/bin/sh", "-c", f"cat; kill -9 {pid}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
