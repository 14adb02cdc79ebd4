"""The processes of Ray actors that run shards."""

from __future__ import annotations

import psutil

_NAMES = (
    "ray::ShardActor",
    "ray::SlowActor",
)  # Ray's own agents are not among them: they take their node along


def actor_processes(root: int | None = None) -> list[psutil.Process]:
    """Those alive below the process `root`, by default this one."""
    try:
        below = psutil.Process(root).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in below if _is_actor(process)]


def _is_actor(process: psutil.Process) -> bool:
    try:
        name, status = process.name(), process.status()
    except psutil.NoSuchProcess:
        return False
    return str(name).startswith(_NAMES) and status != psutil.STATUS_ZOMBIE
