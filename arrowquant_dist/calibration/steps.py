"""How far a calibration is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from arrowquant_dist.engine import EngineEvent, OnEvent


@dataclass(frozen=True, slots=True)
class CalibrationStep:
    """name: what is being done, for people. done, total: of it, in `unit` (`tokens`)."""

    name: str
    done: int
    total: int
    unit: str = "tokens"


OnCalibrationStep = Callable[[CalibrationStep], None]


def counted_tokens(name: str, total: int, earlier: int, callback: OnCalibrationStep | None) -> OnEvent:
    """What an engine calls with its events. earlier: tokens that are done already."""
    if callback is None:
        return lambda _: None
    lock, done = threading.Lock(), earlier

    def told(event: EngineEvent) -> None:
        nonlocal done
        with lock:
            done += event.nbytes
            callback(CalibrationStep(name, min(done, total), total))

    callback(CalibrationStep(name, done, total))
    return told
