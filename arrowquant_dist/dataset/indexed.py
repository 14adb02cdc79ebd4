"""The layers of a dataset with an index: all are checked at once, and each is made when it is asked for.

A dataset of 10,000 layers may be opened to read a few of them, and MiniLM's 104 layers are all read from index columns
alone: making a Python object for each row, its header and its four ranges took half the time of opening.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from arrowquant_dist.dataset.layers import BlockProblems, StoredBlock, StoredLayer, group_layers
from arrowquant_dist.errors import ArrowQuantError
from arrowquant_dist.format.record import most_stored_nbytes
from arrowquant_dist.format.row import BLOB_NAMES
from arrowquant_dist.target.index import Coded, IndexTable

# A row's header without its name and checksum: of rows that are alike in these columns only one is checked.
_SHAPES = ("shape", "layer_shape")
_TEXTS = ("dtype", "quant_type")
_AT_ONCE = 16  # layers
_NUMBERS = ("row_start", "row_dims", "quant_axis", "group_size", "num_params")


@dataclass(frozen=True, slots=True, eq=False)
class RowPlaces:
    """Where the values of each row are. paths: path of its part. values: (offset, stored size) of each of its values,
    in the order of Blobs. nbytes: sum of these sizes."""

    paths: Sequence[str]
    values: Sequence[tuple[tuple[int, int], ...]]
    nbytes: Sequence[int]

    @classmethod
    def of(cls, table: IndexTable) -> RowPlaces:
        ranges = [table.ranges(value)[:2] for value in BLOB_NAMES]
        values = [zip(offsets.tolist(), stored.tolist(), strict=True) for offsets, stored in ranges]
        nbytes = np.sum([stored for _, stored in ranges], axis=0)
        paths = [path or "" for path in table.texts["part"].to_list()]
        return cls(paths, [*zip(*values, strict=True)], nbytes.tolist())


class IndexedLayers(Mapping[str, StoredLayer]):
    """Layers by name, in the order of their first rows. Thread-safe.

    table: the index. rows: the rows of the table for each layer. kinds: number of the kind of each row; rows of a kind
    have equal headers, except for names and checksums, and values of equal sizes. samples: for each kind the block of
    its first row.
    """

    def __init__(
        self,
        table: IndexTable,
        rows: Mapping[str, Sequence[int]],
        kinds: Sequence[int],
        samples: Sequence[StoredBlock],
    ) -> None:
        self.table, self.kinds, self.samples = table, kinds, samples
        self._rows = rows
        self._made: dict[str, StoredLayer] = {}

    def __getitem__(self, name: str) -> StoredLayer:
        found = self._made.get(name)
        return self._make(name)[0] if found is None else found

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def rows_of(self, name: str) -> Sequence[int]:
        """The rows of the table in which a layer is stored, sorted by the rows of the layer that they hold."""
        return self._rows[name]

    @cached_property
    def places(self) -> RowPlaces:
        return RowPlaces.of(self.table)

    @cached_property
    def checksums(self) -> list[str]:
        """The checksum of each row."""
        return [text or "" for text in self.table.texts["checksum"].to_list()]

    @cached_property
    def _names(self) -> list[str]:
        return [*self._rows]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self._rows)}

    def _make(self, name: str) -> list[StoredLayer]:
        """Makes this layer and some that follow it, which are usually asked for next: making each alone takes three
        times as long."""
        at = self._places[name]
        names = self._names[at : at + _AT_ONCE]
        blocks = iter(blocks_of(self.table, [row for one in names for row in self._rows[one]]))
        return [
            self._made.setdefault(one, _layer(one, [*islice(blocks, len(self._rows[one]))])) for one in names
        ]


def blocks_of(table: IndexTable, rows: Sequence[int]) -> list[StoredBlock]:
    return [StoredBlock.from_record(entry.part, entry.record) for entry in table.some(rows)]


def indexed_layers(
    table: IndexTable, url: Callable[[str], str]
) -> tuple[Mapping[str, StoredLayer], list[ArrowQuantError]]:
    """Like group_layers for all blocks of the table."""
    found = _sound(table, url)
    return (found, []) if found is not None else group_layers(blocks_of(table, range(table.rows)), url)


def _sound(table: IndexTable, url: Callable[[str], str]) -> IndexedLayers | None:
    """The layers; None if anything is wrong, which group_layers then reports."""
    kinds, samples = _kinds(table)
    problems = BlockProblems()
    blocks = blocks_of(table, samples)
    if any(problems.of(block) is not None for block in blocks) or not _are_ranges(table):
        return None
    whole = np.array([block.is_whole for block in blocks], bool)[kinds]
    rows = _rows_by_layer(table.texts["layer_name"])
    for name, members in rows.items():
        if len(members) == 1 and whole[members[0]]:
            continue
        ordered = blocks_of(table, members)
        layers, errors = group_layers(ordered, url)
        if errors:
            return None
        at = {id(block): row for block, row in zip(ordered, members, strict=True)}
        rows[name] = [at[id(block)] for block in layers[name].blocks]
    return IndexedLayers(table, rows, kinds.tolist(), blocks)


def _kinds(table: IndexTable) -> tuple[np.ndarray, list[int]]:
    """(the kind of each row, int64 [rows]; the first row of each kind)."""
    columns: list[list[int]] = [table.shapes[name].codes.tolist() for name in _SHAPES]
    columns += [table.texts[name].codes.tolist() for name in _TEXTS]
    columns += [table.numbers[name].tolist() for name in _NUMBERS]
    columns += [table.ranges(value)[2].tolist() for value in BLOB_NAMES]
    columns.append(_are_empty(table.texts["checksum"]).tolist())
    known: dict[tuple[int, ...], int] = {}
    samples, kinds = list[int](), list[int]()
    for row, alike in enumerate(zip(*columns, strict=True)):
        kind = known.setdefault(alike, len(samples))
        if kind == len(samples):
            samples.append(row)
        kinds.append(kind)
    return np.array(kinds, np.int64), samples


def _are_empty(texts: Coded[str | None]) -> np.ndarray:
    found: np.ndarray = np.array([not text for text in texts.values], bool)[texts.codes]
    return found


def _are_ranges(table: IndexTable) -> bool:
    """Whether ranges_problem would find nothing wrong in any row."""
    compression = table.texts["compression"]
    if not {*compression.values} <= {"none", "zstd"}:
        return False
    plain = np.array([text == "none" for text in compression.values], bool)[compression.codes]
    for value in BLOB_NAMES:
        offset, stored, nbytes = table.ranges(value)
        if min(offset.min(initial=0), stored.min(initial=0), nbytes.min(initial=0)) < 0:
            return False
        if ((stored != nbytes) & plain).any() or (stored > most_stored_nbytes(nbytes)).any():
            return False
    return True


def _rows_by_layer(names: Coded[str | None]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row, name in enumerate(names.to_list()):
        found.setdefault(name or "", []).append(row)
    return found


def _layer(name: str, blocks: Sequence[StoredBlock]) -> StoredLayer:
    first = blocks[0].header
    return StoredLayer(name, first.layer_shape, first.dtype, first.row_dims, tuple(blocks))
