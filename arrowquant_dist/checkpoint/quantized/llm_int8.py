"""bitsandbytes' int8: X.weight; X.SCB, the largest magnitude of each row; and X.weight_format, a number.

Of its formats, state dicts contain only 0, plain rows; the others belong to old kernels.
"""

from __future__ import annotations

from arrowquant_dist.checkpoint.quantized.compressed import ReadValues
from arrowquant_dist.checkpoint.quantized.model_config import FLOATS, ModelConfig
from arrowquant_dist.checkpoint.quantized.tensors import Tensors, refuse
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.encodings.llm_int8 import LlmInt8

_METHOD = "bitsandbytes"
_CODES, _MAXIMA, _FORMAT = ".weight", ".SCB", ".weight_format"
_FORMATS = ("row", "col32", "col_turing", "col_ampere")
_AGAIN = "download the checkpoint again"


def add_llm_int8(tensors: Tensors, config: ModelConfig, read_values: ReadValues) -> None:
    """Adds the layers of bitsandbytes' int8 codes. Raises InvalidCheckpoint for codes whose maxima are missing or do
    not fit, or that are not stored in rows."""
    found: list[tuple[Layer, Layer]] = []
    for part in list(tensors.by_name.values()):
        base = part.name.removesuffix(_MAXIMA)
        if base != part.name:
            if base + _CODES not in tensors.by_name:
                refuse(f"it belongs to int8 codes, but {base}{_CODES} is missing; {_AGAIN}", part)
            found.append((tensors.by_name[base + _CODES], part))
        elif config.method == _METHOD and part.dtype == "int8" and part.name.endswith(_CODES):
            needed = part.name.removesuffix(_CODES) + _MAXIMA
            if needed not in tensors.by_name:
                refuse(f"these are int8 codes of bitsandbytes, but {needed} is missing; {_AGAIN}", part)
    _check_formats(tensors, [codes for codes, _ in found], read_values)
    dtype = config.dtype_or(_dtype_beside(tensors))
    for codes, maxima in found:
        if codes.dtype != "int8" or len(codes.shape) != 2 or not codes.nbytes:
            refuse(f"{list(codes.shape)} of {codes.dtype} are not int8 codes of a matrix; {_AGAIN}", codes)
        if maxima.dtype not in FLOATS or maxima.shape not in ((codes.shape[0],), (codes.shape[0], 1)):
            message = f"{list(maxima.shape)} of {maxima.dtype} are not the maxima of the rows of {list(codes.shape)}"
            refuse(f"{message}; {_AGAIN}", maxima)
        tensors.place(codes)
        form = codes.name.removesuffix(_CODES) + _FORMAT
        parts = [maxima.name, *([form] if form in tensors.by_name else [])]
        tensors.add(codes, codes.name, codes.shape, LlmInt8(tensors.place(maxima)), parts, dtype)


def _dtype_beside(tensors: Tensors) -> str:
    """The dtype of the model's other tensors (norms, embeddings); without any, float16, which int8 is made from."""
    floats = [
        layer.dtype
        for layer in tensors.by_name.values()
        if layer.dtype in FLOATS and _MAXIMA not in layer.name
    ]
    return floats[0] if floats else "float16"


def _check_formats(tensors: Tensors, codes: list[Layer], read_values: ReadValues) -> None:
    names = [layer.name.removesuffix(_CODES) + _FORMAT for layer in codes]
    forms = [tensors.by_name[name] for name in names if name in tensors.by_name]
    for form in forms:
        if form.dtype != "uint8" or form.num_params != 1:
            refuse(f"{list(form.shape)} of {form.dtype} is not the number of a format; {_AGAIN}", form)
        tensors.place(form)
    for form, values in zip(forms, read_values(forms) if forms else [], strict=True):
        number = int(values[0])
        if number:
            name = _FORMATS[number] if number < len(_FORMATS) else str(number)
            refuse(
                f"int8 codes in the format {name!r} are not supported, only rows; save the model again", form
            )
