"""Servers as processes that never outlive the one that started them."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

SECONDS_TO_START = 60.0


def watch(pid: int) -> subprocess.Popen[bytes]:
    """A process that outlives this one by a moment, to kill `pid`: its stdin ends when this process does, however."""
    return subprocess.Popen(
        ["/bin/sh", "-c", f"cat; kill -9 {pid}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


class ServerProcess:
    """Listens on 127.0.0.1 when the constructor returns.

    command: what starts it, in `folder`, where its log goes as well.
    """

    def __init__(self, command: list[str], folder: Path, port: int, environment: dict[str, str]) -> None:
        self._log = folder / "log.txt"
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C on the tests must not take it from under their clean-up.
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._watchdog = watch(self._process.pid)
        self._wait(port)

    def stop(self) -> None:
        kill(self._watchdog)
        kill(self._process)

    def _wait(self, port: int) -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        while not _listens(port):
            said = self._log.read_text(errors="replace")[-2000:]
            assert self._process.poll() is None, f"it ended with {self._process.returncode}: {said}"
            assert time.monotonic() < deadline, f"no answer within {SECONDS_TO_START} s: {said}"
            time.sleep(0.05)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
