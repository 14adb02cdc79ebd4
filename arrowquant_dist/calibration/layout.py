"""Paths in OUT of everything that belongs to a calibration, finished or not."""

from __future__ import annotations

import re

CALIBRATION_PATH = "calibration.json"
SETTINGS_PATH = "run/calibration.json"
CONFIG_PATH = "run/config.json"
TOKENS_PATH = "run/tokens.safetensors"
SENSITIVITIES_PATH = "run/sensitivities.safetensors"
STATES_FOLDER, AHEAD_FOLDER = "run/states", "run/ahead"
_STATISTICS = re.compile(r"statistics-\d{5}-\d{3}\.safetensors")


def statistics_path(part: int, stage: int) -> str:
    return f"statistics-{part:05d}-{stage:03d}.safetensors"


def done_path(part: int) -> str:
    """The file that marks a part as done and names the statistics of its layers."""
    return f"run/done/{part:05d}.json"


def states_path(part: int, number: int, folder: str = STATES_FOLDER) -> str:
    """Inputs of a part for one slice of the texts."""
    return f"{folder}/{part:05d}/{number:05d}.safetensors"


def sums_path(part: int, stage: int, digest: str, number: int) -> str:
    """Sums of one slice. digest: digest of the sums that are wanted."""
    return f"run/sums/{part:05d}/{stage:03d}-{digest}/{number:05d}.safetensors"


def quantized_path(part: int, stage: int) -> str:
    """Values of a stage's layers after they were quantized and decoded."""
    return f"run/quantized/{part:05d}/{stage:03d}.safetensors"


def is_ours(path: str) -> bool:
    return path == CALIBRATION_PATH or path.startswith("run/") or _STATISTICS.fullmatch(path) is not None
