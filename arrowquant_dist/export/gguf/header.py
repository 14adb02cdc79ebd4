"""The start of a GGUF file: metadata, and where each tensor is. The `gguf` package defines the numbers of the types;
tests read the file with it."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from arrowquant_dist.errors import InvalidConfig, MissingDependency
from arrowquant_dist.export.gguf.architecture import Architecture
from arrowquant_dist.export.gguf.vocabulary import Vocabulary
from arrowquant_dist.export.tensors import OutputTensor

ALIGNMENT = 32  # of each tensor, counted from the end of the header; the format's default
_QUANTIZATION_VERSION = 2
# llama.cpp's numbers for what most of a file is (general.file_type)
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32, "TQ2_0": 37}
# Whole numbers that llama.cpp reads as another type than uint32, with struct's letters
_WHOLE = {"split.no": ("UINT16", "H"), "split.count": ("UINT16", "H"), "split.tensors.count": ("INT32", "i")}
_HEAD = struct.Struct("<4sIQQ")  # "GGUF", its version, numbers of tensors and fields
_LENGTH = struct.Struct("<Q")
_MOST_FILES = 2**16 - 1


def gguf_package() -> Any:
    """Returns the package that knows the format. Raises MissingDependency if it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise MissingDependency(
            "GGUF is written with the package gguf; pip install 'arrowquant-dist[gguf]'"
        ) from error
    return gguf


def padding(nbytes: int) -> bytes:
    """Returns the padding that has to follow this many bytes."""
    return bytes(-nbytes % ALIGNMENT)


def header(fields: Mapping[str, Any], tensors: Sequence[OutputTensor]) -> bytes:
    """Returns the header, padded to ALIGNMENT. fields: metadata by full key: bool, int (uint32, or as in _WHOLE), float
    (float32), str, or a list of these (lists of whole numbers: int32); `general.architecture` is required and comes
    first. tensors: in the order in which they follow.

    The package's own writer packs each token of a vocabulary in several calls, which takes half a second for Llama 3's.
    """
    gguf = gguf_package()
    first = "general.architecture"
    ordered = {first: fields[first], **fields}
    parts = [_HEAD.pack(b"GGUF", gguf.GGUF_VERSION, len(tensors), len(ordered))]
    for key, value in ordered.items():
        parts += [_string(key), _value(key, value, gguf.GGUFValueType)]
    offset = 0
    for tensor in tensors:
        dtype, dimensions = gguf.GGMLQuantizationType[tensor.dtype], tensor.shape[::-1]
        parts.append(_string(tensor.name))
        parts.append(struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, dtype, offset))
        offset += tensor.nbytes + -tensor.nbytes % ALIGNMENT
    data = b"".join(parts)
    return data + padding(len(data))


def model_fields(
    architecture: Architecture, vocabulary: Vocabulary, pooling: int | None, tensors: Sequence[OutputTensor]
) -> dict[str, Any]:
    """Returns the metadata of a whole model, by full key. pooling: its number in llama.cpp, or None."""
    own = {f"{architecture.name}.{key}": value for key, value in architecture.fields.items()}
    if pooling is not None:
        own[f"{architecture.name}.pooling_type"] = pooling
    if architecture.token_types:
        own["tokenizer.ggml.token_type_count"] = architecture.token_types
    return {
        "general.architecture": architecture.name,
        "general.type": "model",
        "general.file_type": _file_type(tensors),
        "general.quantization_version": _QUANTIZATION_VERSION,
        **own,
        **_tokenizer_fields(vocabulary),
    }


def split_fields(number: int, count: int, tensors: int) -> dict[str, Any]:
    """Returns the metadata of one of several files. tensors: number of tensors in all of them. Raises InvalidConfig for
    more files than can be counted."""
    if count > _MOST_FILES:
        raise InvalidConfig(f"max_file_bytes: {count} files, and GGUF allows at most {_MOST_FILES}; raise it")
    return {"split.no": number, "split.count": count, "split.tensors.count": tensors}


def _tokenizer_fields(vocabulary: Vocabulary) -> dict[str, Any]:
    names = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # the format's own words
    fields: dict[str, Any] = {
        "model": vocabulary.model,
        "pre": vocabulary.pre,
        "tokens": list(vocabulary.tokens),
        "token_type": [int(kind) for kind in vocabulary.kinds],
        "scores": list(vocabulary.scores),
        "merges": list(vocabulary.merges),
        **{f"{names.get(role, role)}_token_id": number for role, number in vocabulary.roles.items()},
        **{f"add_{role}_token": adds for role, adds in vocabulary.adds.items()},
    }
    if vocabulary.space_prefix is not None:
        fields["add_space_prefix"] = vocabulary.space_prefix
    named = {f"tokenizer.ggml.{name}": value for name, value in fields.items() if value != []}
    return named | ({"tokenizer.chat_template": vocabulary.chat_template} if vocabulary.chat_template else {})


def _file_type(tensors: Sequence[OutputTensor]) -> int:
    """Returns the file type: that of most values in matrices."""
    values: dict[str, int] = {}
    for tensor in tensors:
        if len(tensor.shape) > 1:
            values[tensor.dtype] = values.get(tensor.dtype, 0) + tensor.shape[0] * tensor.shape[1]
    return _FILE_TYPES[max(values, key=lambda dtype: values[dtype])]


def _value(key: str, value: Any, kinds: Any) -> bytes:
    """Returns the value with its type before it. kinds: the package's GGUFValueType."""
    match value:
        case bool():
            return struct.pack("<I?", kinds.BOOL, value)
        case int():
            kind, form = _WHOLE.get(key, ("UINT32", "I"))
            return struct.pack(f"<I{form}", kinds[kind], value)
        case float():
            return struct.pack("<If", kinds.FLOAT32, value)
        case str():
            return struct.pack("<I", kinds.STRING) + _string(value)
        case [str(), *_]:
            head, items = kinds.STRING, b"".join(map(_string, value))
        case [int(), *_]:
            head, items = kinds.INT32, struct.pack(f"<{len(value)}i", *value)
        case _:
            head, items = kinds.FLOAT32, struct.pack(f"<{len(value)}f", *value)
    return struct.pack("<IIQ", kinds.ARRAY, head, len(value)) + items


def _string(text: str) -> bytes:
    data = text.encode()
    return _LENGTH.pack(len(data)) + data
