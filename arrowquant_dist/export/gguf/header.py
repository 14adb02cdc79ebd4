"""What a GGUF file begins with: metadata, and where each tensor lies. Made by the `gguf` package, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from arrowquant_dist.errors import InvalidConfig, MissingDependency
from arrowquant_dist.export.gguf.architecture import Architecture
from arrowquant_dist.export.gguf.vocabulary import Vocabulary
from arrowquant_dist.export.tensors import OutputTensor

ALIGNMENT = 32  # of each tensor, from the end of the header on; the format's default
_QUANTIZATION_VERSION = 2
# llama.cpp's words for what most of a file is (general.file_type)
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32, "TQ2_0": 37}
# Whole numbers that llama.cpp reads as another type than uint32
_WHOLE = {"split.no": "uint16", "split.count": "uint16", "split.tensors.count": "int32"}
_MOST_FILES = 2**16 - 1


def gguf_package() -> Any:
    """The package that knows the format. MissingDependency where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise MissingDependency(
            "GGUF is written with the package gguf; pip install 'arrowquant-dist[gguf]'"
        ) from error
    return gguf


def padding(nbytes: int) -> bytes:
    """What has to follow so many bytes."""
    return bytes(-nbytes % ALIGNMENT)


def header(fields: Mapping[str, Any], tensors: Sequence[OutputTensor]) -> bytes:
    """fields: metadata by full keys: bool, int (uint32, or as _WHOLE has it), float (float32), str, or a list of these
    (whole numbers of lists: int32). tensors: in the order in which they follow. Padded to ALIGNMENT."""
    gguf = gguf_package()
    writer = gguf.GGUFWriter(None, fields["general.architecture"])
    for key, value in fields.items():
        if key != "general.architecture":  # the writer's own
            _add(writer, key, value)
    for tensor in tensors:
        dtype = gguf.GGMLQuantizationType[tensor.dtype]
        writer.add_tensor_info(tensor.name, tensor.shape, None, tensor.nbytes, raw_dtype=dtype)
    file = BytesIO()
    writer.fout, writer.state = [file], gguf.gguf_writer.WriterState.EMPTY  # as a file that was just opened
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    data = file.getvalue()
    return data + padding(len(data))


def model_fields(
    architecture: Architecture, vocabulary: Vocabulary, pooling: int | None, tensors: Sequence[OutputTensor]
) -> dict[str, Any]:
    """Metadata of a whole model, by full keys. pooling: its number in llama.cpp, or None."""
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
    """Metadata of one of several files. tensors: of all of them. InvalidConfig for more files than can be counted."""
    if count > _MOST_FILES:
        raise InvalidConfig(
            f"max_file_bytes: {count} files, and GGUF counts to {_MOST_FILES}; let files be larger"
        )
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
    """By what most values of matrices are."""
    values: dict[str, int] = {}
    for tensor in tensors:
        if len(tensor.shape) > 1:
            values[tensor.dtype] = values.get(tensor.dtype, 0) + tensor.shape[0] * tensor.shape[1]
    return _FILE_TYPES[max(values, key=lambda dtype: values[dtype])]


def _add(writer: Any, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            getattr(writer, f"add_{_WHOLE.get(key, 'uint32')}")(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
