"""Looks at processes: whether they are alive, and which of them are Ray actors that run shards."""

from __future__ import annotations

import psutil

# Excludes Ray's own agents, which end their node when they end.
_ACTORS = ("ray::ShardActor", "ray::HeldActor")


def is_alive(pid: int) -> bool:
    """Whether the process is alive; a zombie is not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def actor_processes(root: int | None = None) -> list[psutil.Process]:
    """The actors that are alive below the process `root`, by default this one."""
    try:
        below = psutil.Process(root).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in below if _is_actor(process)]


def _is_actor(process: psutil.Process) -> bool:
    try:
        return str(process.name()).startswith(_ACTORS) and is_alive(process.pid)
    except psutil.NoSuchProcess:
        return False
