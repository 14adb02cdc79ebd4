"""The small files that make weights a model: config, tokenizer, README. Never code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase

from arrowquant_dist.checkpoint.quantized.model_config import MLX_KEY, QUANTIZATION_KEYS, is_mlx
from arrowquant_dist.checkpoint.table import Checkpoint, SourceFile
from arrowquant_dist.storage.base import ObjectInfo, Store

MAX_SIDECAR_NBYTES = 32 << 20
_CONFIG = "config.json"
_PATTERNS = (
    _CONFIG,
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer*.txt",
    "tokenizer*.model",
    "vocab*.json",
    "vocab*.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",  # sentencepiece
    "*.tiktoken",
    "tekken.json",
    "chat_template*.json",
    "chat_template*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "README.md",
    "LICENSE*",
)
_CODE = (".py", ".pyc", ".so", ".sh", ".js", ".ipynb")


def choose_sidecars(listing: Iterable[ObjectInfo]) -> tuple[str, ...]:
    """Paths of the known small files in a source's folder, sorted. Code and large files are left out."""
    return tuple(
        sorted(info.path for info in listing if info.nbytes <= MAX_SIDECAR_NBYTES and _is_known(info.path))
    )


def sidecar_files(
    store: Store, sidecars: Iterable[str], listing: Iterable[ObjectInfo]
) -> tuple[SourceFile, ...]:
    """What they were when the source's folder was listed."""
    listed = {info.path: info for info in listing}
    return tuple(SourceFile(store.url(path), listed[path].nbytes, listed[path].version) for path in sidecars)


def published(path: str, data: bytes, checkpoint: Checkpoint) -> bytes:
    """What a target has of a sidecar: the same bytes, but for the config.json of a source whose codes were decoded.

    That no longer says how the weights were quantized: its reader would look for scales that are not there.
    """
    if path != _CONFIG or not checkpoint.decoded:
        return data
    config = json.loads(data)
    inner = config.get("text_config")
    for place in (config, inner) if isinstance(inner, dict) else (config,):
        for key in QUANTIZATION_KEYS:
            place.pop(key, None)
        if is_mlx(place.get(MLX_KEY)):
            del place[MLX_KEY]
    return json.dumps(config, indent=2, ensure_ascii=False).encode()


def _is_known(path: str) -> bool:
    if path.lower().endswith(_CODE):
        return False
    # A pattern's * must not reach into subfolders.
    return any(fnmatchcase(path, p) and path.count("/") == p.count("/") for p in _PATTERNS)
