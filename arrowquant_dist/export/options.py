"""What an export is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from arrowquant_dist.config import Activations
from arrowquant_dist.config.arguments import known_arguments
from arrowquant_dist.config.checks import check_bool, check_choice
from arrowquant_dist.config.sizes import MIB, TIB, checked_size
from arrowquant_dist.location import Location

ExportFormatName = Literal["compressed-tensors", "gguf", "safetensors", "v1"]
EXPORT_FORMATS = get_args(ExportFormatName)


@known_arguments
@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What an export writes, and with how much memory. Sizes may be given as text, such as "1GiB".

    format: one of EXPORT_FORMATS.
    activations: `int8` quantizes activations as well when the model runs.
    requantize: layers that the format cannot hold are quantized again.
    source: a checkpoint to take the values for that from, instead of the dataset's decoded ones.
    max_file_bytes: of a file of weights, unless a single layer is larger.
    memory_budget: for all workers of a process.
    overwrite: replace what an earlier export left.
    """

    format: ExportFormatName = "safetensors"
    activations: Activations | None = None
    requantize: bool = False
    source: Location | None = None
    max_file_bytes: int | str = 1 << 30
    memory_budget: int | str = 1 << 30
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_choice("format", self.format, EXPORT_FORMATS)
        if self.activations is not None:
            check_choice("activations", self.activations, get_args(Activations))
        check_bool("requantize", self.requantize)
        check_bool("overwrite", self.overwrite)
        self._set_size("max_file_bytes", MIB, TIB)
        self._set_size("memory_budget", 64 * MIB, TIB)

    @property
    def max_file_nbytes(self) -> int:
        """max_file_bytes in bytes."""
        return int(self.max_file_bytes)

    @property
    def memory_nbytes(self) -> int:
        """memory_budget in bytes."""
        return int(self.memory_budget)

    def _set_size(self, name: str, lowest: int, highest: int) -> None:
        object.__setattr__(self, name, checked_size(name, getattr(self, name), lowest, highest))
