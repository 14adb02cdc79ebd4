"""Which files are the dataset where no manifest says so, and what a place is that holds none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from arrowquant_dist.errors import IncompleteDataset, NoRegularFile, NotFound, shortened
from arrowquant_dist.export_names import RECORD_PATH, SERVED_PATH
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.regular import obstructed
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.strict_json import parse_json
from arrowquant_dist.target.layout import PLAN_PATH, WEIGHTS_FOLDER

# {format of an export: what opens it}
_OPENS = {
    "compressed-tensors": "transformers and vLLM open it",
    "gguf": "llama.cpp opens its .gguf file",
    "safetensors": "transformers' from_pretrained opens it",
}


def bare_paths(store: Store) -> Sequence[str]:
    """The Parquet files of a folder without a manifest, or "" for a store that is itself one. NotFound says what is
    there instead."""
    if store.exists(""):
        return [""]
    if store.has_file(PLAN_PATH):
        message = "the run that writes it has not finished; run the same quantize command again"
        raise IncompleteDataset(message, uri=store.uri)
    _refuse_links_to_nothing(store)
    found = [info.path for info in store.list()]
    paths = [path for path in found if _is_data(path)]
    in_weights = [path for path in paths if path.startswith(f"{WEIGHTS_FOLDER}/")]
    if not paths:
        raise NotFound(_why_no_dataset(store, found), uri=store.uri)
    return in_weights or paths


def refuse_export(store: Store) -> None:
    """NotFound where a finished export is that is no dataset: not Parquet."""
    if store.exists(RECORD_PATH) and (reason := _export(store)) is not None:
        raise NotFound(reason, uri=store.uri)


def _refuse_links_to_nothing(store: Store) -> None:
    """NoRegularFile: no listing has them, so a part of the dataset would be missing without a word. Folders may be
    named as files are, and FIFOs are refused when they are opened."""
    if is_local(store.uri):
        for path, what in obstructed(Path(store.uri), _is_data):
            if not Path(store.uri, path).exists():
                message = f"this is {what} and a part of the dataset; fetch it again, or remove it"
                raise NoRegularFile(message, uri=store.url(path))


def _why_no_dataset(store: Store, paths: Sequence[str]) -> str:
    """Of a folder without Parquet files."""
    if RECORD_PATH in paths and (reason := _export(store)) is not None:
        return reason
    if SERVED_PATH in paths:
        return f"this is a folder for vLLM, without weights; give the dataset that its {SERVED_PATH} names"
    if any(path.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf")) for path in paths):
        return (
            "this is a checkpoint and no dataset; quantize it first, or give the target of the run that did"
        )
    return "no manifest.json and no .parquet file here; check the spelling"


def _export(store: Store) -> str | None:
    """What a folder with an export's record is; None where that is another program's, or of an export that is a dataset
    too."""
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
    what = f"this is an export as {written} and no dataset: {_OPENS[written]}"
    return f"{what}; give the dataset that it was made of{named}"


def _is_data(path: str) -> bool:
    """Parquet files that are not hidden, as other readers of such folders see it."""
    return path.endswith(".parquet") and not any(part[0] in "._" for part in PurePosixPath(path).parts)
