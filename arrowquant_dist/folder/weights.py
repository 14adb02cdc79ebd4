"""Chooses the weight files of a folder that are the model: one set, never two copies, and every choice is reported.

Repositories hold the same model several times: in another container, precision or naming, whole and in numbered
files, with averaged copies, adapters and a trainer's state beside it. The likeliest set is chosen by its name (see
`names.Grade`), safetensors before PyTorch files, and files that an index names before others; the user is told what
is left out. If two sets are equally likely, it is an error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from arrowquant_dist.errors import InvalidCheckpoint, are, counted, listed
from arrowquant_dist.folder.index import (
    find_files,
    missing_numbers,
    number_of,
    read_weight_map,
    refuse_missing,
)
from arrowquant_dist.folder.listing import SourceFolder
from arrowquant_dist.folder.names import (
    PARQUET,
    SAFETENSORS,
    TORCH,
    Grade,
    grade_of,
    index_of,
    is_adapter,
    is_training_state,
    is_weights,
    rank_of,
    slices_reason,
    stem_of,
    weight_kind,
)
from arrowquant_dist.storage.base import ObjectInfo

_USUAL = ("model", "pytorch_model", "diffusion_pytorch_model")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that are the model. index: path of the index that names them. promised: {tensor: path of its file},
    from the index."""

    files: tuple[ObjectInfo, ...]
    index: str | None = None
    promised: Mapping[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> list[str]:
        return [info.path for info in self.files]


@dataclass(frozen=True, slots=True)
class _Set:
    """Files that form one checkpoint. whole: the name that it would have in one file. paths: its files, unless it has
    an index. index: path of its index."""

    whole: str
    kind: str
    paths: tuple[str, ...] = ()
    index: str | None = None
    is_numbered: bool = False


def choose_weights(folder: SourceFolder, path: str = "") -> WeightFiles | None:
    """The weights directly in `path`; None if there are none, or only those of adapters and trainers.

    An index of whose files none exists, which converters copy along, counts only if nothing else is the model. Raises
    InvalidCheckpoint if two sets are equally likely, or files are missing.
    """
    sets = _sets(folder, path)
    stems = {stem_of(found.whole) for found in sets}
    graded = [(grade_of(found.whole, stems), found) for found in sets]
    chosen = _likeliest(graded, folder, path)
    if chosen is None or chosen.files or chosen.index is None:
        return chosen
    others = [
        (grade, found) for grade, found in graded if grade == Grade.MODEL and found.index != chosen.index
    ]
    instead = _likeliest(others, folder, path)
    return instead if instead is not None and instead.files else weights_of_index(folder, chosen.index)


def _likeliest(graded: Sequence[tuple[Grade, _Set]], folder: SourceFolder, path: str) -> WeightFiles | None:
    """As `_choose`, among the sets of the likeliest grade and format that is there."""
    for grade in Grade:
        for kind in (SAFETENSORS, TORCH):
            alike = [found for own, found in graded if own == grade and found.kind == kind]
            if alike:
                return _choose(alike, folder, path)
    return None


def weights_of_index(folder: SourceFolder, index: str) -> WeightFiles:
    """The files that an index names. Raises InvalidCheckpoint if one is missing or can't be read."""
    found, missing = _find_promised(folder, index)
    refuse_missing(folder.store, index, missing, len(found.files) + len(missing))
    return found


def _find_promised(folder: SourceFolder, index: str) -> tuple[WeightFiles, list[str]]:
    """The files that an index names, and the paths of those that are missing."""
    promised = _read_index(folder, index)
    for path in sorted(set(promised.values())):
        folder.check(path)
    files, missing = find_files(folder.store, promised.values())
    return WeightFiles(tuple(files), index, promised), missing


def choice_notes(folder: SourceFolder, path: str, chosen: WeightFiles) -> list[str]:
    """Notes on which weights were chosen where there was a choice, and on what was left out."""
    taken = {*chosen.paths, chosen.index}
    beside = [info.path for info in folder.files(path) if info.path not in taken]
    others = [path for path in beside if is_weights(_name(path)) and index_of(_name(path)) is None]
    adapters = [path for path in others if is_adapter(_name(path))]
    training = [path for path in others if is_training_state(_name(path))]
    copies = [path for path in others if path not in adapters and path not in training]
    notes = []
    if copies:
        notes.append(
            f"the weights are {_described(chosen)}; other weight files were left out: {listed(copies)}"
        )
    elif len(chosen.files) > 1 and chosen.index is None and number_of(_name(chosen.paths[0])) is None:
        notes.append(f"the weights are {_described(chosen)} together")
    indexes = [path for path in beside if index_of(_name(path)) is not None]
    if indexes and chosen.index is None:
        notes.append(
            f"the weights are {_described(chosen)}; not used: {listed(indexes)}, which names other files"
        )
    if adapters:
        notes.append(
            f"the weights are {_described(chosen)}; an adapter beside them was left out: {listed(adapters)}. "
            "Merge it into the model to have both"
        )
    if training:
        notes.append(f"a trainer's state was left out: {listed(training)}")
    return notes


def adapters_in(folder: SourceFolder, path: str = "") -> list[str]:
    """Paths of the adapter files directly in a folder."""
    return [info.path for info in folder.files(path) if is_adapter(_name(info.path))]


def _sets(folder: SourceFolder, path: str) -> list[_Set]:
    numbered: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    found: list[_Set] = []
    files = folder.files(path)
    openvino = {f"{info.path.removesuffix('.xml')}.bin" for info in files if info.path.endswith(".xml")}
    for info in files:
        name = _name(info.path)
        whole, kind = index_of(name), weight_kind(index_of(name) or name)
        if kind in (None, PARQUET) or is_adapter(name) or info.path in openvino:
            continue
        if whole is not None:
            found.append(_Set(whole, kind or "", index=info.path))
        elif (number := number_of(name)) is not None:
            numbered[number].append(info.path)
        else:
            found.append(_Set(name, kind or "", (info.path,)))
    found += [
        _Set(whole, weight_kind(whole) or "", tuple(paths), is_numbered=True)
        for (whole, _), paths in numbered.items()
    ]
    return found


def _choose(sets: Sequence[_Set], folder: SourceFolder, path: str) -> WeightFiles:
    """The choice among sets of equal grade and format. Without files: an index whose files are all missing."""
    for usual in _USUAL:
        named = [found for found in sets if stem_of(found.whole) == usual]
        if named:
            return _most_certain(named, folder, path)
    return _most_certain(sets, folder, path)


def _most_certain(sets: Sequence[_Set], folder: SourceFolder, path: str) -> WeightFiles:
    indexes = [found.index for found in sets if found.index is not None]
    numbered = [found for found in sets if found.is_numbered]
    wholes = [p for found in sets if found.index is None and not found.is_numbered for p in found.paths]
    if len(indexes) > 1:
        message = f"several indexes: {listed(indexes)}; use one of them as the source"
        raise InvalidCheckpoint(message, uri=folder.store.url(path))
    if indexes:
        found, missing = _find_promised(folder, indexes[0])
        if not missing:
            return found
        if not found.files and not wholes:
            return found
        if not wholes:
            refuse_missing(folder.store, indexes[0], missing, len(found.files) + len(missing))
    is_usual = stem_of(sets[0].whole) in _USUAL
    if numbered and not (wholes and is_usual):
        return _files(_only_complete(numbered, folder, path), folder)
    _refuse_slices(wholes, folder)
    return _files(wholes, folder)


def _read_index(folder: SourceFolder, index: str) -> dict[str, str]:
    folder.check(index)
    return read_weight_map(folder.store, index)


def _only_complete(numbered: Sequence[_Set], folder: SourceFolder, path: str) -> tuple[str, ...]:
    complete = [found for found in numbered if not missing_numbers(found.paths)]
    if len(complete) > 1:
        names = listed(found.paths[0] for found in complete)
        message = (
            f"several complete sets of numbered files ({names} …) and no index that says which of them is the model; "
            "move the others away"
        )
        raise InvalidCheckpoint(message, uri=folder.store.url(path))
    if complete:
        return complete[0].paths
    missing = missing_numbers(numbered[0].paths)
    count = len(missing) + len(numbered[0].paths)
    named = f"{len(missing)} of {counted(count, 'file')} {are(len(missing))} missing: {listed(missing)}"
    message = f"{named}; fetch what is missing"
    raise InvalidCheckpoint(message, uri=folder.store.url(path))


def _refuse_slices(paths: Sequence[str], folder: SourceFolder) -> None:
    ranks = {path: rank for path in paths if (rank := rank_of(_name(path))) is not None}
    if len(set(ranks.values())) > 1:
        raise InvalidCheckpoint(slices_reason(ranks), uri=folder.store.url(next(iter(ranks))))


def _files(paths: Sequence[str], folder: SourceFolder) -> WeightFiles:
    for path in paths:
        folder.check(path)
    return WeightFiles(tuple(find_files(folder.store, paths)[0]))


def _described(chosen: WeightFiles) -> str:
    if chosen.index is not None:
        return f"those that {chosen.index} names"
    return listed(chosen.paths)


def _name(path: str) -> str:
    return path.rpartition("/")[2]
