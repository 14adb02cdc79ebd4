"""The state of a training, kept at the target of the new dataset so that a stopped training can go on.

    run/distillation/state-<id>.bin    the bytes of all that is trained, Adam's moments, and the best that was found
    run/distillation/state.json        which of these counts, what is in it, its digest, and how far the training is

The second is written last and replaced as a whole. Until there is a plan, nothing else is at the target: other commands
find files that belong to no run and refuse them, the same command finds its own.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash

from arrowquant_dist.errors import CorruptWeights, NotFound
from arrowquant_dist.loader.tensors import bytes_of
from arrowquant_dist.storage.base import ByteRange, Store
from arrowquant_dist.strict_json import parse_json

FOLDER = "run/distillation"
_INDEX = f"{FOLDER}/state.json"


@dataclass(frozen=True, slots=True)
class TrainingState:
    """numbers: plain values. tensors: {name: tensor}."""

    numbers: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class TrainingStates:
    """The saved state of a distillation. made_of: what identifies the distillation, plain values."""

    store: Store
    made_of: Mapping[str, Any]

    def save(self, state: TrainingState) -> None:
        """Replaces the saved state. Another run of the same distillation may save meanwhile: each deletes the object
        that the index named before, which is never named again, so the object that the index names is always there."""
        path = f"{FOLDER}/state-{uuid.uuid4().hex}.bin"
        digest, described = xxhash.xxh3_128(), []
        with self.store.open_writer(path) as writer:
            for name, tensor in state.tensors.items():
                data = bytes_of(tensor)
                dtype = str(tensor.dtype).removeprefix("torch.")
                described.append([name, dtype, list(tensor.shape), writer.tell(), data.nbytes])
                digest.update(data.data)
                writer.write(data.data)
        index = {
            "made_of": self.made_of,
            "path": path,
            "digest": digest.hexdigest(),
            "numbers": state.numbers,
            "tensors": described,
        }
        before = self._index()
        self.store.write(_INDEX, json.dumps(index).encode())
        if before is not None:
            self.store.delete([self.store.check_path(before["path"])])

    def load(self) -> TrainingState | None:
        """The saved state; None where there is none, or another distillation's. Raises CorruptWeights where it is
        damaged."""
        index = self._index()
        if index is None:
            return None
        try:
            return self._read(index)
        except (NotFound, KeyError, TypeError, AttributeError, ValueError) as error:
            raise self._damaged() from error

    @property
    def is_own(self) -> bool:
        """Whether the saved state is of this distillation."""
        return self._index() is not None

    def _index(self) -> Mapping[str, Any] | None:
        try:
            index = parse_json(self.store.read(_INDEX))
        except NotFound:
            return None
        except ValueError as error:
            raise self._damaged() from error
        return index if isinstance(index, dict) and index.get("made_of") == self.made_of else None

    def _read(self, index: Mapping[str, Any]) -> TrainingState:
        path, digest = self.store.check_path(index["path"]), xxhash.xxh3_128()
        tensors = {}
        for name, dtype, shape, offset, nbytes in index["tensors"]:
            data = self.store.read_range(path, ByteRange(offset, offset + nbytes))
            digest.update(data.data)
            tensors[name] = (
                torch.from_numpy(np.ascontiguousarray(data)).view(getattr(torch, dtype)).reshape(shape)
            )
        if digest.hexdigest() != index["digest"]:
            raise self._damaged()
        return TrainingState(index["numbers"], tensors)

    def paths(self) -> list[str]:
        """Paths of all states that are there."""
        return [info.path for info in self.store.list(FOLDER)]

    def delete(self) -> None:
        """Deletes all states, the index first, since without it nothing counts."""
        self.store.delete([_INDEX])
        self.store.delete(self.paths())

    def _damaged(self) -> CorruptWeights:
        message = f"the state of the training is damaged; delete the folder {FOLDER}, and run the same command again"
        return CorruptWeights(message, uri=self.store.url(_INDEX))
