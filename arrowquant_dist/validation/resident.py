"""A program that measures how much memory a process needs to hold all weights, in addition to what it has before it
reads them. It is a program of its own so that nothing else is counted.

`python -m arrowquant_dist.validation.resident` reads a list of {uri, what, storage_options, transfer} from stdin, so
that options with credentials are not in a list of processes. Each is measured in a fork of its own, which has imported
everything and done nothing else. The program prints a list of {peak_nbytes, kept_nbytes} or {error}. The resident
memory is the kernel's figure.
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
    """Whether this system says how much memory is resident, and can reset the recorded peak."""
    return (_PROC / "clear_refs").exists() and (_PROC / "status").exists()


def answer() -> None:
    import torch  # noqa: F401 - loaders need it: imported once, before the forks

    asked = json.loads(sys.stdin.read())
    json.dump([_forked(one) for one in asked], sys.stdout)


def _forked(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of a fork of this process, which then ends."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        try:
            return pool.submit(_said, asked).result()
        except BrokenProcessPool:
            return {"error": "its process was killed, probably because it needed more memory than there is"}


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
        # The smallest layer of each type: reading it compiles or loads the type's kernels before memory is measured.
        smallest: dict[str, tuple[int, str]] = {}
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
    (_PROC / "clear_refs").write_text("5")  # resets the recorded peak
    kept = load()
    peak = status_nbytes("VmHWM") - before
    gc.collect()
    give_back_freed_memory()
    left = max(status_nbytes("VmRSS") - before, 0)
    found = Resident(max(peak, left), left)  # the peak may be too low: the kernel counts last pages late
    del kept
    return found


if __name__ == "__main__":
    answer()
