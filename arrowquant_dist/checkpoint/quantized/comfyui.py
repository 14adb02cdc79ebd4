"""ComfyUI's files, which say how each layer is quantized: in M.comfy_quant, JSON as uint8, or in the file's header.

Their float8 weights are like others'. Their 4-bit floats have the high four bits of a byte first, and the scales of
their blocks are in the order of a GPU's tiles, under the names that ModelOpt uses for plain ones: these stay byte for
byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from arrowquant_dist.checkpoint.quantized.compressed import ReadValues
from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig
from arrowquant_dist.checkpoint.quantized.tensors import Tensors
from arrowquant_dist.checkpoint.quantized.undecoded import why_kept
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.strict_json import parse_json

_MARKER = ".comfy_quant"
_HEADER_KEY = "_quantization_metadata"
_PLAIN = ("float8_e4m3fn", "float8_e5m2")  # formats whose codes and scales are like everybody's
_BLOCKS = ("uint8", "float8_e8m0fnu", "float8_e4m3fn")  # dtypes of scales of blocks
_MAX_MARKER = 1 << 16
_MAX_HEADER = 100_000_000  # the limit of safetensors
_SIZE_NBYTES = 8  # of a safetensors header


def keep_comfyui(tensors: Tensors, config: ModelConfig, read_values: ReadValues) -> None:
    """Keeps the modules whose format is not in `_PLAIN`."""
    for module, settings in _settings(tensors, config, read_values).items():
        name = settings.get("format")
        if name not in _PLAIN or settings.get("convrot"):
            own = (tensor for tensor in tensors.by_name if tensor.startswith(f"{module}."))
            tensors.keep(own, why_kept(f"ComfyUI ({name})"))


def _settings(tensors: Tensors, config: ModelConfig, read_values: ReadValues) -> dict[str, Mapping[str, Any]]:
    """{module: its settings}."""
    markers = [
        t
        for t in tensors.by_name.values()
        if t.name.endswith(_MARKER) and t.dtype == "uint8" and t.nbytes <= _MAX_MARKER
    ]
    found = read_values(markers) if markers else []
    said = {
        marker.name.removesuffix(_MARKER): _parsed(values.tobytes())
        for marker, values in zip(markers, found, strict=True)
    }
    if not config.quantization:
        for uri in dict.fromkeys(_files_with_blocks(tensors)):
            said |= _of_header(uri, tensors, read_values)
    return said


def _files_with_blocks(tensors: Tensors) -> Iterable[str]:
    for tensor in tensors.by_name.values():
        if tensor.dtype in _BLOCKS and tensor.name.endswith("_scale") and tensor.uri.endswith(".safetensors"):
            yield tensor.uri


def _of_header(uri: str, tensors: Tensors, read_values: ReadValues) -> dict[str, Mapping[str, Any]]:
    """What the header of a safetensors file says about its modules."""
    (size,) = read_values([Layer("header's size", (_SIZE_NBYTES,), "uint8", uri, 0, _SIZE_NBYTES)])
    nbytes = int.from_bytes(size.tobytes(), "little")
    if nbytes > _MAX_HEADER:  # not a safetensors file, whatever its name
        return {}
    (header,) = read_values([Layer("header", (nbytes,), "uint8", uri, _SIZE_NBYTES, nbytes)])
    metadata = _parsed(header.tobytes()).get("__metadata__")
    text = metadata.get(_HEADER_KEY) if isinstance(metadata, dict) else None
    layers = _parsed(text.encode()).get("layers") if isinstance(text, str) else None
    if not isinstance(layers, dict):
        return {}
    named = {key: value for key, value in layers.items() if isinstance(value, dict)}
    # The file may have been extracted from a larger one, or merged into one: its names are then shorter, or longer.
    longer = {ending: value for key, value in named.items() for ending in _endings(key) if "." in ending}
    found: dict[str, Mapping[str, Any]] = {}
    for module in dict.fromkeys(name.rpartition(".")[0] for name in tensors.by_name):
        said = [named[ending] for ending in _endings(module) if ending in named]
        said += [longer[module]] if module in longer else []
        if said:
            found[module] = said[0]
    return found


def _endings(name: str) -> list[str]:
    """The name, and what follows each dot in it."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _parsed(data: bytes) -> Mapping[str, Any]:
    """The JSON object; {} if the data is not one."""
    try:
        found = parse_json(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
