"""Classifies a file by its name: weights of a model, a second form of these, a part, an adapter, or something else.

The names are those that trainers, hubs and converters write.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from enum import IntEnum
from pathlib import PurePosixPath

from arrowquant_dist.errors import listed

SAFETENSORS, TORCH, PARQUET = "safetensors", "torch", "dataset"
_KINDS = {
    ".safetensors": SAFETENSORS,
    ".bin": TORCH,
    ".pt": TORCH,
    ".pth": TORCH,
    ".ckpt": TORCH,
    ".parquet": PARQUET,
}
# Suffixes of other programs' weights: never a source, never copied.
_FOREIGN = (
    *(
        ".h5",
        ".hdf5",
        ".keras",
        ".msgpack",
        ".ot",
        ".onnx",
        ".onnx_data",
        ".onnx.data",
        ".gguf",
        ".ggml",
        ".ggmf",
    ),
    *(
        ".npz",
        ".npy",
        ".tflite",
        ".mlmodel",
        ".pb",
        ".nemo",
        ".engine",
        ".plan",
        ".trt",
        ".pdparams",
        ".pdiparams",
    ),
    *(
        ".pdmodel",
        ".pdopt",
        ".caffemodel",
        ".distcp",
        ".safetensors_rust",
        ".exl2",
        ".pte",
        ".ptl",
        ".torchscript",
    ),
    *(
        ".mar",
        ".dlc",
        ".rknn",
        ".mnn",
        ".weights",
        ".params",
        ".index",
        ".meta",
        ".llamafile",
        ".orc",
        ".arrow",
    ),
)
_TENSORFLOW = re.compile(r".*\.data-\d+-of-\d+")
_INDEX = re.compile(r"(?P<whole>.+\.\w+)\.index(?P<variant>\.\w+)?\.json")
# Files that trainers leave beside the weights.
_TRAINING = re.compile(
    r"(training_args|training_state|train_state|trainer_state|optimizer|optim|opt_state|scheduler|lr_scheduler|scaler"
    r"|rng_state|random_states|dataloader|sampler)(?![a-z]).*|.*optim_states\.pt"
)
_OTHER_FORMATS = re.compile(r"(openvino|ggml)(?![a-z])")
_ADAPTERS = re.compile(
    r"(adapter_model|adapters?|pytorch_adapter|pytorch_model_head|pytorch_lora_weights|non_lora_trainables"
    r"|learned_embeds)(-\d+-of-\d+)?(\.\w+)?\.(safetensors|bin|pt|pth|ckpt)(\.index\.json)?"
)
_PARTS = {"ema", "vae", "projector", "lora", "loha", "lokr", "lycoris", "dora", "adapter"}
_PART_NAMES = re.compile(r"(value_head|v_head|tokenizer|vocab|merges|spiece|sentencepiece)(?![a-z])")
_VARIANT = re.compile(r"(?P<base>.+)[-_](?P<variant>[a-z0-9]+)")
# Names by Meta (Llama), DeepSpeed and Megatron, TensorRT-LLM, and vLLM. Not compiled, since hardly any name begins so.
_SLICE = r"(consolidated\.|mp_rank_|model-rank-|rank)(?P<rank>\d+)(_model_states|-part-\d+)?(\.(pth|pt|safetensors))?"
_RANK = ("consolidated.", "mp_rank_", "model-rank-", "rank")
_MERGED = {"merged", "fused"}
_VARIANTS = {
    *(
        "fp16",
        "bf16",
        "fp32",
        "fp8",
        "fp4",
        "float16",
        "bfloat16",
        "float32",
        "half",
        "int8",
        "int4",
        "8bit",
        "4bit",
    ),
    *("non_ema", "ema", "pruned", "emaonly", "bak", "backup", "old", "orig", "original", "copy"),
}


class Grade(IntEnum):
    """How likely it is that a weight file is the model; the likeliest first.

    SECOND: the same model under its makers' names for tensors. VARIANT: the same in another precision. PART: averaged
    copies, heads, projectors; chosen only if there is nothing else.
    """

    MODEL = 0
    SECOND = 1
    VARIANT = 2
    PART = 3


def weight_kind(name: str) -> str | None:
    """The format of checkpoint that a file of this name belongs to; None if it does not hold weights of a model."""
    lowered = name.lower()
    kind = _KINDS.get(PurePosixPath(lowered).suffix)
    if kind is None or kind == PARQUET or is_training_state(lowered):
        return kind if kind == PARQUET else None
    return None if kind == TORCH and _OTHER_FORMATS.match(lowered) else kind


def kind_by_suffix(path: str) -> str | None:
    return _KINDS.get(PurePosixPath(path).suffix.lower())


def is_adapter(name: str) -> bool:
    return _ADAPTERS.fullmatch(name.lower()) is not None


def is_training_state(name: str) -> bool:
    """Whether the suffix is that of weights and the name that of a trainer's state. A trainer's settings, which are
    JSON, do not count."""
    return kind_by_suffix(name) is not None and _TRAINING.fullmatch(name.lower()) is not None


def index_of(name: str) -> str | None:
    """The name of the whole that an index describes, `model.safetensors` for `model.safetensors.index.json`; None for
    other names."""
    match = _INDEX.fullmatch(name)
    if match is None or kind_by_suffix(match["whole"]) is None:
        return None
    whole = PurePosixPath(match["whole"])
    return f"{whole.stem}{match['variant'] or ''}{whole.suffix}"


def rank_of(name: str) -> str | None:
    """The GPU whose slice of every tensor a file or folder of this name holds; None for other names."""
    match = re.fullmatch(_SLICE, name) if name.startswith(_RANK) else None
    return None if match is None else match["rank"]


def slices_reason(paths: Iterable[str]) -> str:
    """Why files or folders of several ranks are not a checkpoint."""
    return (
        f"each of {listed(list(paths))} has a slice of every tensor, one for each GPU that the model was made for; "
        "convert them to one checkpoint"
    )


def stem_of(whole: str) -> str:
    """The stem in lower case: `model` for `model.safetensors`."""
    return PurePosixPath(whole.lower()).stem


def grade_of(whole: str, stems: Collection[str]) -> Grade:
    """The grade of a file, or of numbered files by the name of their whole. stems: of all wholes that are there."""
    stem = stem_of(whole)
    words = set(re.split(r"[._\- ]", stem))
    if stem.startswith("consolidated"):
        return Grade.SECOND
    if _PART_NAMES.match(stem) or (words & _PARTS and not words & _MERGED):
        return Grade.PART
    base, _, variant = stem.rpartition(".")
    if base and (variant in _VARIANTS or base in stems):
        return Grade.VARIANT
    match = _VARIANT.fullmatch(stem)
    is_variant = match is not None and match["variant"] in _VARIANTS and match["base"] in stems
    return Grade.VARIANT if is_variant else Grade.MODEL


def is_weights(name: str) -> bool:
    """Whether a file holds tensors of any framework, even an optimizer's or an adapter's, or says where they are."""
    lowered = name.lower()
    return (
        kind_by_suffix(lowered) is not None
        or lowered.endswith(_FOREIGN)
        or _TENSORFLOW.fullmatch(lowered) is not None
        or index_of(lowered) is not None
        or lowered.startswith("openvino_")
    )
