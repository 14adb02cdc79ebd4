"""Opens a model and a dataset of it for comparison: one config, one tokenizer, two sets of weights.

Both models are built from the original model's small files, so that they differ only in their weights. Weights have the
values that `load_model` gives (those of a dataset decoded to the source's dtype, such as bfloat16), but computation is
in float32: this measures the error of what is stored, not that of 16-bit arithmetic, which differs between machines.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from arrowquant_dist.checkpoint.open import source_uri
from arrowquant_dist.checkpoint.sidecars import published
from arrowquant_dist.config import Storage
from arrowquant_dist.errors import InvalidConfig, shortened
from arrowquant_dist.folder.components import named_components
from arrowquant_dist.folder.listing import open_folder
from arrowquant_dist.folder.sidecars import choose_sidecars
from arrowquant_dist.loader.loads import Loads
from arrowquant_dist.loader.opened import LoaderSettings, OpenDataset
from arrowquant_dist.loader.stream import ProgressCallback
from arrowquant_dist.location import Location, location
from arrowquant_dist.models.build import Wanted, build_model
from arrowquant_dist.models.checkpoint import CheckpointLoads, checkpoint_loads
from arrowquant_dist.models.files import SmallFiles, small_files
from arrowquant_dist.models.fill import Filling
from arrowquant_dist.models.kinds import ModelKind
from arrowquant_dist.models.made import FilledModel, made_of
from arrowquant_dist.models.progress import ModelProgress
from arrowquant_dist.models.sentences import Allowed, filled_sentence_model, filled_sentence_transformer
from arrowquant_dist.models.source import LayerSource, layers_by_name
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.temporary import temporary_folder, written_here
from arrowquant_dist.storage.uris import is_local, split_uri

# A pooler plays no part in what is compared, and many checkpoints lack theirs. Nor do layers that a model has no place
# for, such as a head from pre-training; from_pretrained only warns about them.
_ALLOWED = Allowed(initialize=("pooler",), leave_over=("*",))
_VOCABULARY = re.compile(
    r"tokenizer\.json|tekken\.json|.*vocab.*|.*\.(model|spm|bpe|tiktoken)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Opened:
    """The small files and the layers at one location."""

    files: SmallFiles
    source: LayerSource


@contextmanager
def opened_model(
    uri: Location, storage: Storage, memory_nbytes: int, unscaled: Sequence[str] = ()
) -> Iterator[Opened]:
    """Opens a checkpoint and the small files beside it, in the form that `quantize` would copy. Arguments and errors
    are those of `checkpoint_loads`."""
    place = source_uri(uri)
    with (
        checkpoint_loads(place, storage, memory_nbytes, unscaled) as loads,
        _copied_files(place, storage, loads) as files,
    ):
        yield Opened(files, loads)


@contextmanager
def _copied_files(place: str, storage: Storage, loads: CheckpointLoads) -> Iterator[SmallFiles]:
    """Copies the files: the config.json of decoded codes must no longer say how they were quantized."""
    store = open_store(place, storage)
    if store.exists(""):  # a file of weights: the other files are in its folder
        store = open_store(split_uri(place)[0], storage)
    folder = open_folder(store)
    components = tuple(named_components(folder))
    paths = choose_sidecars(folder, [component.path for component in components]).paths
    with temporary_folder() as copies:
        for path in paths:
            content = published(path, store.read(path), loads.checkpoint)
            with written_here(copies / path):
                (copies / path).write_bytes(content)
        yield SmallFiles(store.uri, copies, paths, components, None)


@contextmanager
def opened_dataset(uri: Location, storage: Storage, memory_nbytes: int) -> Iterator[Opened]:
    """Opens a dataset and its small files, all of it verified. Raises what `load_model` raises."""
    place = location(uri, "target")
    settings = LoaderSettings(
        place, storage, memory_nbytes, verify=True, dequantize=True, dtype=None, workers=None
    )
    with small_files(place, storage, verify=True) as files:
        files.check_all()
        opened = OpenDataset(settings, is_local=is_local(place))
        try:
            yield Opened(files, Loads(opened, settings))
        finally:
            opened.close()


def sources(original: Opened, dataset: Opened) -> tuple[CheckpointLoads, Loads]:
    """Returns the sources of what `opened_model` and `opened_dataset` yielded."""
    if not isinstance(original.source, CheckpointLoads) or not isinstance(dataset.source, Loads):
        raise TypeError("opened_model gives a checkpoint, opened_dataset a dataset")
    return original.source, dataset.source


def sentence_transformer(files: SmallFiles, source: LayerSource, progress: ProgressCallback | None) -> Any:
    """Returns the SentenceTransformer of `files` in float32, with the weights of `source`."""
    return filled_sentence_transformer(files, source, torch.float32, _ALLOWED, progress).float().eval()


def transformers_model(
    kind: ModelKind, source: LayerSource, progress: ProgressCallback | None
) -> tuple[Any, tuple[str, ...]]:
    """Returns the model of transformers that `kind` names, in float32, with the weights of `source`, and the layers
    that it has no place for."""
    found = _filled_transformers_model(kind, source, progress)
    return found.model, found.left_over


def filled_model(
    kind: ModelKind, files: SmallFiles, source: LayerSource, progress: ProgressCallback | None
) -> FilledModel:
    """Returns a model of any kind in float32, with the weights of `source`, and what its tensors were made of."""
    if kind.name != "sentence-transformers":
        return _filled_transformers_model(kind, source, progress)
    found = filled_sentence_model(files, source, torch.float32, _ALLOWED, progress)
    found.model.float().eval()
    return found


def _filled_transformers_model(
    kind: ModelKind, source: LayerSource, progress: ProgressCallback | None
) -> FilledModel:
    layers = layers_by_name(source)
    wanted = Wanted(torch.float32, None, _ALLOWED.initialize, _ALLOWED.leave_over)
    built = build_model(kind.model_class, copy.deepcopy(kind.config), layers, source, wanted)
    filling = Filling(built.slots, built.changes, source)
    filling.fill(ModelProgress(progress, filling.nbytes))
    built.model.config.use_cache = False  # nothing is generated
    built.model.float().eval()
    return FilledModel(built.model, tuple(made_of(built)), built.left_over)


def refuse_no_vocabulary(files: SmallFiles) -> None:
    """Raises InvalidConfig if no file has a vocabulary: transformers would silently make a tokenizer without one."""
    if not any(_VOCABULARY.fullmatch(path.rpartition("/")[2]) for path in files.paths):
        message = "there is no tokenizer (no tokenizer.json, vocab or model of one); put the model's beside config.json"
        raise InvalidConfig(message, uri=files.uri)


def tokenizer_of(files: SmallFiles) -> Any:
    """Returns the tokenizer. Raises InvalidConfig if transformers finds none that it knows."""
    import transformers

    refuse_no_vocabulary(files)
    try:
        return transformers.AutoTokenizer.from_pretrained(
            files.folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = shortened(" ".join(str(error).split()), 300)
        message = f"transformers finds no tokenizer there ({reason}); put the model's beside its config.json"
        raise InvalidConfig(message, uri=files.uri) from error
