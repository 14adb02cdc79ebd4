"""MLX's codes: uint32 X.weight with X.scales, and X.biases if they are affine.

`quantization` in config.json has bits, group size and mode, for all modules or for one by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from arrowquant_dist.checkpoint.quantized.model_config import FLOATS, ModelConfig
from arrowquant_dist.checkpoint.quantized.tensors import Tensors, refuse
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.encodings.affine import AFFINE_BITS, Affine
from arrowquant_dist.encodings.encoding import Encoding
from arrowquant_dist.encodings.float8 import Float8Blocks
from arrowquant_dist.encodings.microscaled import Microscaled
from arrowquant_dist.encodings.nvfp4 import Nvfp4
from arrowquant_dist.errors import InvalidCheckpoint, counted

_CODES, _SCALES, _BIASES = ".weight", ".scales", ".biases"
_GLOBAL = ".global_scale"
_DEFAULT_BITS, _DEFAULT_GROUP = 4, 64
_AFFINE, _E8M0, _E4M3 = "affine", "float8_e8m0fnu", "float8_e4m3fn"
# {mode without biases: (bits, values that share a scale, dtype of the scales' bytes)}
_FLOAT_MODES = {"mxfp4": (4, 32, _E8M0), "mxfp8": (8, 32, _E8M0), "nvfp4": (4, 16, _E4M3)}
_AGAIN = "download the checkpoint again"


@dataclass(frozen=True, slots=True)
class _Mode:
    """How a module is quantized. bits, group_size: None if the config does not say."""

    name: str
    bits: int | None
    group_size: int | None


def add_mlx(tensors: Tensors, config: ModelConfig) -> None:
    """Adds the layers of MLX's codes, and keeps those of modes that can't be decoded.

    Raises InvalidCheckpoint for codes without scales or biases, or whose scales or biases do not have the shape that
    the config implies.
    """
    for scales in list(tensors.by_name.values()):
        base = scales.name.removesuffix(_SCALES)
        codes = tensors.by_name.get(base + _CODES)
        if base == scales.name or codes is None or codes.dtype != "uint32":
            continue
        mode = _mode(base, config)
        biases = tensors.by_name.get(base + _BIASES)
        unknown = _unknown(mode, base, tensors)
        if unknown is not None:
            names = [codes.name, scales.name, base + _BIASES, base + _GLOBAL]
            tensors.keep(names, f"codes of {unknown}, which can't be decoded")
            continue
        if not codes.shape or not codes.nbytes:
            refuse(f"{list(codes.shape)} of uint32 are not codes of a matrix; {_AGAIN}", codes)
        tensors.place(codes)
        if mode.name == _AFFINE:
            _add_affine(tensors, codes, scales, biases, mode, config)
        else:
            _add_floats(tensors, codes, scales, mode)
    _check_alone(tensors, config)


def _mode(module: str, config: ModelConfig) -> _Mode:
    """The module's own settings if it has any, which MLX does not complete with the model's; else the model's."""
    given = config.mlx
    own = given.get(module, given)
    if own is True:
        own = given
    if not isinstance(own, dict):
        _refuse(f"the entry for {module} is {own!r}, but the module has codes and scales", config)
    found: list[int | None] = []
    for key in ("bits", "group_size"):
        number = own.get(key)
        if number is not None and (type(number) is not int or number < 1):
            _refuse(f"`{key}` of {module} is {number!r}, not a positive integer", config)
        found.append(number)
    return _Mode(str(own.get("mode", _AFFINE)), *found)


def _unknown(mode: _Mode, module: str, tensors: Tensors) -> str | None:
    """The name of the format, if it can't be decoded; else None."""
    if mode.name not in (_AFFINE, *_FLOAT_MODES):
        return f"MLX's mode {mode.name!r}"
    return "MLX's nvfp4 with a global scale" if module + _GLOBAL in tensors.by_name else None


def _add_affine(
    tensors: Tensors, codes: Layer, scales: Layer, biases: Layer | None, mode: _Mode, config: ModelConfig
) -> None:
    base = codes.name.removesuffix(_CODES)
    if biases is None:
        refuse(f"these are codes of MLX, but {base}{_BIASES} is missing; {_AGAIN}", codes)
    for part in (scales, biases):
        if part.dtype not in FLOATS or part.shape[:-1] != codes.shape[:-1] or part.shape != scales.shape:
            refuse(f"{list(part.shape)} of {part.dtype} do not fit codes {list(codes.shape)}; {_AGAIN}", part)
    bits, group_size = _numbers(codes, mode)
    shape = _shape(codes, scales, bits, group_size)
    encoding = Affine(bits, group_size, tensors.place(scales), tensors.place(biases))
    dtype = config.dtype_or(scales.dtype)
    tensors.add(codes, codes.name, shape, encoding, [scales.name, biases.name], dtype)


def _numbers(codes: Layer, mode: _Mode) -> tuple[int, int]:
    """Bits and group size. Shapes tell neither, so if only one is given, the other is MLX's default."""
    if mode.bits is None and mode.group_size is None:
        message = "its shape does not determine how many bits codes have; add `bits` and `group_size` to config.json's"
        refuse(f"{message} quantization", codes)
    bits = mode.bits or _DEFAULT_BITS
    if bits not in AFFINE_BITS:
        refuse(f"MLX's codes of {counted(bits, 'bit')} are not supported, only 1 to 8", codes)
    return bits, mode.group_size or _DEFAULT_GROUP


def _add_floats(tensors: Tensors, codes: Layer, scales: Layer, mode: _Mode) -> None:
    bits, group, dtype = _FLOAT_MODES[mode.name]
    if mode.bits not in (None, bits) or mode.group_size not in (None, group):
        refuse(
            f"the config says {mode.bits} bits in groups of {mode.group_size}, which is not {mode.name}",
            codes,
        )
    if scales.dtype not in ("uint8", dtype) or scales.shape[:-1] != codes.shape[:-1]:
        refuse(
            f"{list(scales.shape)} of {scales.dtype} do not fit codes {list(codes.shape)}; {_AGAIN}", scales
        )
    shape = _shape(codes, scales, bits, group)
    place = tensors.place(scales, dtype)
    encodings: dict[str, Encoding] = {
        "mxfp4": Microscaled(place),
        "mxfp8": Float8Blocks("float8_e4m3fn", (1, group), place),
        "nvfp4": Nvfp4(group, place, None, None),
    }
    tensors.add(codes, codes.name, shape, encodings[mode.name], [scales.name])


def _shape(codes: Layer, scales: Layer, bits: int, group_size: int) -> tuple[int, ...]:
    """The shape of the values: the codes have to fill their words, and the groups to be whole."""
    columns = scales.shape[-1] * group_size
    if columns * bits != codes.shape[-1] * 32:
        refuse(
            f"{counted(codes.shape[-1], 'word')} and {counted(scales.shape[-1], 'scale')} per row do not fit "
            f"{counted(bits, 'bit')} in groups of {group_size}, as the config says; {_AGAIN}",
            codes,
        )
    return (*codes.shape[:-1], columns)


def _check_alone(tensors: Tensors, config: ModelConfig) -> None:
    """Refuses codes without scales in a model of MLX's."""
    if not config.mlx:
        return
    for codes in tensors.by_name.values():
        if codes.dtype == "uint32" and codes.name.endswith(_CODES) and tensors.is_free(codes.name):
            scales = codes.name.removesuffix(_CODES) + _SCALES
            refuse(f"these are codes of MLX, but {scales} is missing; {_AGAIN}", codes)


def _refuse(message: str, config: ModelConfig) -> NoReturn:
    raise InvalidCheckpoint(f"quantization: {message}; correct it", uri=config.uri)
