"""The stored tensors of a module with codes of GPTQ or AWQ, and what their layouts have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from arrowquant_dist.checkpoint.quantized.model_config import FLOATS, ModelConfig
from arrowquant_dist.checkpoint.quantized.module_settings import WHOLE_ROW, ModuleSettings
from arrowquant_dist.checkpoint.quantized.tensors import Tensors, refuse
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.encodings.encoding import Encoding
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.errors import counted

CODES, ZEROS, SCALES, GROUPS = ".qweight", ".qzeros", ".scales", ".g_idx"
AGAIN = "download the checkpoint again"


@dataclass(frozen=True, slots=True)
class WordParts:
    """The stored tensors of a module. name: the module's name."""

    name: str
    codes: Layer
    zeros: Layer
    scales: Layer
    groups: Layer | None

    @property
    def parts(self) -> list[str]:
        return [part.name for part in (self.zeros, self.scales, self.groups) if part is not None]


def check_words(module: WordParts) -> None:
    for part in (module.codes, module.zeros):
        if part.dtype != "int32" or len(part.shape) != 2 or not part.nbytes:
            refuse(f"{list(part.shape)} of {part.dtype} are not int32 words of a matrix; {AGAIN}", part)
    if module.scales.dtype not in FLOATS or len(module.scales.shape) != 2 or not module.scales.nbytes:
        shape = list(module.scales.shape)
        refuse(f"{shape} of {module.scales.dtype} are not scales of a matrix; {AGAIN}", module.scales)


def add_layer(
    tensors: Tensors, module: WordParts, shape: tuple[int, int], encoding: Encoding, config: ModelConfig
) -> None:
    """Adds the layer, in the config's dtype or else in that of the scales, which is what the codes were made from."""
    dtype = config.dtype_or(module.scales.dtype)
    tensors.add(module.codes, f"{module.name}.weight", shape, encoding, module.parts, dtype)


def group_of(module: WordParts, settings: ModuleSettings, inputs: int) -> int:
    """Inputs that share a scale: as the config says, or the number that gives equal groups."""
    count = module.scales.shape[0]
    size = inputs if settings.group_size == WHOLE_ROW else settings.group_size
    if size is None:
        size = -(-inputs // count)
    if -(-inputs // size) != count or (
        settings.group_size is None and module.groups is None and inputs % count
    ):
        refuse_groups(module, inputs, size)
    return size


def refuse_groups(module: WordParts, inputs: int, size: int) -> NoReturn:
    shape = list(module.scales.shape)
    refuse(
        f"scales {shape} do not fit {counted(inputs, 'input')} in groups of {size}; {AGAIN}",
        module.scales,
    )


def places_of(tensors: Tensors, module: WordParts) -> tuple[Place, Place]:
    return tensors.place(module.scales), tensors.place(module.zeros)


def check_shape(part: Layer, shape: tuple[int, int], module: WordParts) -> None:
    if part.shape != shape:
        of = f"{module.codes.name} {list(module.codes.shape)}"
        refuse(f"its shape is {list(part.shape)}, but {of} needs {list(shape)}; {AGAIN}", part)
