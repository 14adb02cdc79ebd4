"""Recognizes our exports, finished or not, where a dataset, a checkpoint or a free place is expected.

A finished export has a record. An unfinished one has only a mark in each of its weight files, from the first byte
written or from the last.
"""

from __future__ import annotations

from collections.abc import Iterable

from arrowquant_dist.errors import CorruptWeights, shortened
from arrowquant_dist.export_names import MARK_KEY, RECORD_KIND, RECORD_PATH, SERVED_PATH
from arrowquant_dist.storage.base import ByteRange, Store
from arrowquant_dist.strict_json import parse_json
from arrowquant_dist.target.manifest import StoredFile

UNFINISHED = (
    "this is an unfinished export, or only the weights of one; run the same export command again, or use the "
    "dataset that it is made from"
)
NO_WEIGHTS = f"this is a folder for vLLM, without weights; use the dataset that its {SERVED_PATH} names"
# {format of an export that is not a dataset: what opens it}
_OPENS = {
    "compressed-tensors": "transformers and vLLM open it",
    "gguf": "llama.cpp opens its .gguf file",
    "safetensors": "transformers' from_pretrained opens it",
}
# {suffix: the mark is within so many bytes from the beginning of the file; negative: from its end}
_MARK_WITHIN_NBYTES = {".safetensors": 4 << 10, ".gguf": 64 << 10, ".parquet": -(64 << 10)}
_MOST_LOOKED_AT = 8  # enough: all, or all but a few, of the weight files in an export's folder are its own


def finished_export(store: Store) -> str | None:
    """A sentence that says what a folder with an export's record is; None if the record is another program's, or
    belongs to an export that is itself a dataset (V1)."""
    try:
        record = parse_json(store.read(RECORD_PATH))
    except ValueError:
        return None
    written = record.get("format") if isinstance(record, dict) else None
    if not isinstance(written, str) or written not in _OPENS:
        return None
    origin = record.get("origin")
    dataset = origin.get("dataset") if isinstance(origin, dict) else None
    named = f", {shortened(dataset)}" if isinstance(dataset, str) else ""
    what = f"this is an export as {written}, not a dataset: {_OPENS[written]}"
    return f"{what}; use the dataset that it was made from{named}"


def listed_files(store: Store) -> tuple[StoredFile, ...] | None:
    """All files of a finished V1 export, as its record lists them; None for anything else. Raises CorruptWeights for
    a damaged record."""
    if not store.exists(RECORD_PATH):
        return None
    try:
        record = parse_json(store.read(RECORD_PATH))
        if record["kind"] != RECORD_KIND or record["format"] != "v1":
            return None
        return tuple(StoredFile(str(f["path"]), int(f["nbytes"]), str(f["hash"])) for f in record["files"])
    except (ValueError, KeyError, TypeError) as error:
        message = f"this is not the record of an export ({error}); fetch it again, or export again"
        raise CorruptWeights(message, uri=store.url(RECORD_PATH)) from error


def marked(store: Store, paths: Iterable[str]) -> str | None:
    """The first of these files that carries the mark of our exports; None if none of the first few does."""
    weights = [path for path in paths if path.endswith(tuple(_MARK_WITHIN_NBYTES))]
    return next((path for path in weights[:_MOST_LOOKED_AT] if _has_mark(store, path)), None)


def _has_mark(store: Store, path: str) -> bool:
    within = next(n for suffix, n in _MARK_WITHIN_NBYTES.items() if path.endswith(suffix))
    nbytes = store.size(path)
    span = ByteRange(0, min(nbytes, within)) if within > 0 else ByteRange(max(0, nbytes + within), nbytes)
    return MARK_KEY.encode() in store.read_range(path, span).tobytes()
