"""A real terminal (a pty) of a given size for the program, in this process, and what it shows line by line."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from arrowquant_dist.cli import app

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@dataclass(frozen=True)
class Shown:
    """What a command showed on stdout and stderr together. drawn: everything, including what was drawn over later, such
    as progress."""

    exit_code: int
    drawn: str

    @property
    def every_line(self) -> list[str]:
        return [line for line in re.split(r"[\r\n]+", self.drawn) if line]

    @property
    def lines(self) -> list[str]:
        """The lines on the screen at the end."""
        return [line.rpartition("\r")[2] for line in self.drawn.replace("\r\n", "\n").split("\n")]

    @property
    def words(self) -> set[str]:
        return {*" ".join(self.lines).split()}


def on_terminal(columns: int, *arguments: object, patch: pytest.MonkeyPatch) -> Shown:
    """Runs `arrowquant ARGUMENTS` with stdout and stderr on a terminal of `columns` × 24."""
    with terminal(columns, patch) as screen, pytest.raises(SystemExit) as end:
        app(args=list(map(str, arguments)), prog_name="arrowquant")
    return Shown(int(end.value.code or 0), screen.drawn)


@contextmanager
def terminal(columns: int, patch: pytest.MonkeyPatch) -> Iterator[Screen]:
    """Makes a terminal of `columns` × 24 of stdout and stderr within the block; its screen can be read afterwards."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    screen = Screen()
    reader = threading.Thread(target=_read_all, args=(ours, screen.pieces))
    reader.start()
    with patch.context() as inside, os.fdopen(its, "w", encoding="utf-8") as shown:
        inside.delenv("COLUMNS", raising=False)
        inside.setenv("TERM", "xterm-256color")
        inside.setattr(sys, "stdout", shown)
        inside.setattr(sys, "stderr", shown)
        yield screen
    reader.join()
    os.close(ours)


@dataclass(frozen=True)
class Screen:
    """What a terminal shows."""

    pieces: list[bytes] = field(default_factory=list)

    @property
    def drawn(self) -> str:
        return _ESCAPES.sub("", b"".join(self.pieces).decode())


def _read_all(descriptor: int, pieces: list[bytes]) -> None:
    while True:
        try:
            piece = os.read(descriptor, 1 << 16)
        except OSError:  # how Linux reports the end of a terminal
            return
        if not piece:
            return
        pieces.append(piece)
