"""The machine that a validation ran on."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

from arrowquant_dist.machine import memory_nbytes, processor_name
from arrowquant_dist.reduce.facts import HostFacts
from arrowquant_dist.storage.uris import is_local, real_place
from arrowquant_dist.validation.figures import Environment

_OTHERS = ("transformers", "sentence-transformers", "safetensors")  # packages that HostFacts does not list


def environment_at(out: str) -> Environment:
    """Describes this machine, and the disk that `out` is on."""
    host = HostFacts.here()
    disk = _disk(out) if is_local(out) else None
    return Environment(
        cpu=processor_name(),
        cpus=host.cpus,
        memory_nbytes=memory_nbytes(),
        disk_nbytes=disk[0] if disk is not None else None,
        disk_free_nbytes=disk[1] if disk is not None else None,
        system=host.system,
        python=host.python,
        versions={**host.versions, **_versions()},
    )


def _disk(out: str) -> tuple[int, int] | None:
    """(total, free) bytes of the file system that `out` is on, or will be created on."""
    place = Path(real_place(out))
    there = next((folder for folder in (place, *place.parents) if folder.exists()), None)
    if there is None:
        return None
    usage = shutil.disk_usage(there)
    return usage.total, usage.free


def _versions() -> dict[str, str]:
    found = {}
    for name in _OTHERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
