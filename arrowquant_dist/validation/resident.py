"""What a process takes to have all weights, beside what it has when the first is read: a program of its own, so that
nothing else of it counts.

`python -m arrowquant_dist.validation.resident` reads a list of {uri, what, storage_options, transfer} from stdin, where
options with credentials are in no list of processes. Each is measured in a fork, which has imported everything and done
nothing, and ends with it; printed is a list of {peak_nbytes, kept_nbytes}, or of {error}. The kernel says what was
resident.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from arrowquant_dist.config import Storage, Transfer
from arrowquant_dist.errors import ArrowQuantError
from arrowquant_dist.loader import WeightLoader
from arrowquant_dist.machine import give_back_freed_memory, status_nbytes
from arrowquant_dist.validation.figures import Resident
from arrowquant_dist.validation.source import opened_source

SOURCE, VALUES, CODES = "source", "values", "codes"
_PROC = Path("/proc/self")


def can_measure() -> bool:
    """Whether this system says what is resident, and forgets the most of it on request."""
    return (_PROC / "clear_refs").exists() and (_PROC / "status").exists()


def answer() -> None:
    import torch  # noqa: F401 - which loaders need: imported once

    asked = json.loads(sys.stdin.read())
    json.dump([_forked(one) for one in asked], sys.stdout)


def _forked(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a fork of this process says, which ends then."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        try:
            return pool.submit(_said, asked).result()
        except BrokenProcessPool:
            return {"error": "its process was killed, as one is that takes more memory than there is"}


def _said(asked: Mapping[str, Any]) -> dict[str, Any]:
    try:
        storage = Storage(asked["storage_options"], Transfer.of(asked["transfer"]))
        measure = _of_source if asked["what"] == SOURCE else _of_dataset
        return asdict(measure(asked["uri"], asked["what"], storage))
    except (ArrowQuantError, MemoryError) as error:
        return {"error": str(error) or type(error).__name__}


def _of_dataset(uri: str, what: str, storage: Storage) -> Resident:
    is_decoded = what == VALUES
    with WeightLoader(
        uri, storage_options=storage.options, transfer=storage.transfer, dequantize=is_decoded
    ) as loader:
        smallest: dict[str, tuple[int, str]] = {}  # of each type: its kernels are compiled or loaded before
        for name in list(loader.keys()):
            stored = loader.layer(name)
            known = smallest.get(stored.quant_type, (stored.num_params, name))
            smallest[stored.quant_type] = min(known, (stored.num_params, name))
        for _, name in smallest.values():
            loader.read(name)
        return _resident(lambda: [tensor for _, tensor in loader])


def _of_source(uri: str, _what: str, storage: Storage) -> Resident:
    with opened_source(uri, storage) as opened:
        layers = opened.checkpoint.layers
        for piece in opened.pieces(min(layers, key=lambda layer: layer.num_params)):
            del piece
        return _resident(lambda: [[*opened.pieces(layer)] for layer in layers])


def _resident(load: Callable[[], Any]) -> Resident:
    gc.collect()
    give_back_freed_memory()
    before = status_nbytes("VmRSS")
    (_PROC / "clear_refs").write_text("5")  # the most is taken from now on
    kept = load()
    peak = status_nbytes("VmHWM") - before
    gc.collect()
    give_back_freed_memory()
    left = max(status_nbytes("VmRSS") - before, 0)
    found = Resident(max(peak, left), left)  # each thread tells the kernel of its last pages late
    del kept
    return found


if __name__ == "__main__":
    answer()
