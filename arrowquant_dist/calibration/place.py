"""OUT as a place: what may be there before a calibration begins, what is kept of one that was stopped, and how it ends.

Nothing of others is overwritten. run/calibration.json, which is created first and never replaced, says to which
calibration the rest belongs, by the fingerprint of all that decides the statistics. Finished parts are kept, since
run/done/ names them. The part at which a calibration was stopped is done again, by the same texts in the same slices,
so its objects are overwritten with the same bytes. calibration.json is written last, and then run/ is removed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NoReturn

from arrowquant_dist.calibration.identity import Identity
from arrowquant_dist.calibration.layout import (
    CALIBRATION_PATH,
    CONFIG_PATH,
    SETTINGS_PATH,
    done_path,
    is_ours,
)
from arrowquant_dist.calibration.record import CalibratedLayer, Calibration
from arrowquant_dist.config import QuantizationConfig, recorded_config
from arrowquant_dist.errors import NotFound, TargetConflict, listed
from arrowquant_dist.storage.base import Store, is_temporary
from arrowquant_dist.strict_json import parse_json
from arrowquant_dist.target.layout import Listing


@dataclass(frozen=True, slots=True)
class PartDone:
    """A finished part. layers: its layers, with the names of their statistics. unfit, strange: see PartStatistics."""

    layers: tuple[CalibratedLayer, ...]
    unfit: tuple[str, ...]
    strange: tuple[str, ...]

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> PartDone:
        values = parse_json(data)
        layers = tuple(map(CalibratedLayer.from_dict, values["layers"]))
        return cls(layers, tuple(values["unfit"]), tuple(values["strange"]))


class CalibrationPlace:
    """The folder that a calibration writes to. store: the folder. identity: that of this calibration."""

    def __init__(self, store: Store, identity: Identity) -> None:
        self.store, self.identity = store, identity

    def begin(self, *, overwrite: bool) -> Calibration | None:
        """Claims the folder for this calibration, or finds that it already did. Returns the record of a finished one.

        overwrite: delete another calibration, and nothing else. Raises TargetConflict where something else is there.
        """
        found = Listing.of(self.store)
        if overwrite:
            self._clear(found)
            found = Listing.of(self.store)
        record = self._record(found)
        if record is not None:
            self._tidy()  # in case the process that wrote the record died before this
            return record
        self._refuse_others(found)
        settings = json.dumps(asdict(self.identity)).encode()
        if not self.store.create(SETTINGS_PATH, settings):
            self._refuse_other_run()
        return None

    def config(self, choose: Callable[[], QuantizationConfig]) -> QuantizationConfig:
        """The result of `choose`, which is called once: other processes of this calibration, and one that resumes it,
        get the same config."""
        if not self.store.exists(CONFIG_PATH):
            self.store.create(CONFIG_PATH, json.dumps(choose().to_dict()).encode())
        return recorded_config(parse_json(self.store.read(CONFIG_PATH)))

    def done(self) -> list[PartDone]:
        """The finished parts, in order."""
        found: list[PartDone] = []
        while True:
            try:
                found.append(PartDone.from_bytes(self.store.read(done_path(len(found)))))
            except NotFound:
                return found

    def add(self, part: int, done: PartDone) -> None:
        self.store.write(done_path(part), done.to_bytes())

    def finish(self, record: Calibration) -> Calibration:
        """Writes the record, and removes what served only to get there."""
        if not self.store.create(CALIBRATION_PATH, record.to_bytes()):
            there = self._read()
            if there.fingerprint != record.fingerprint:
                message = "another calibration was finished here in the meantime; choose another folder"
                raise TargetConflict(message, uri=self.store.uri)
            record = there
        self._tidy()
        return record

    def finished_meanwhile(self) -> Calibration | None:
        """The record, if another process has finished the same calibration; else None. Objects that this process missed
        were then removed by the other; what it has written since is removed here."""
        if not self.store.exists(CALIBRATION_PATH):
            return None
        record = self._read()
        if record.fingerprint != self.identity.fingerprint:
            return None
        self._tidy()
        return record

    def remove(self, folder: str) -> None:
        """Deletes what is under a folder of run/, or all of run/."""
        self.store.delete([info.path for info in self.store.list(folder)])

    def _tidy(self) -> None:
        """Deletes what served only to get there, and temporary objects that killed processes left."""
        self.remove("run")
        self.store.delete([info.path for info in self.store.list() if is_temporary(info.path)])

    def _record(self, found: Listing) -> Calibration | None:
        if CALIBRATION_PATH not in found:
            return None
        record = self._read()
        if record.fingerprint != self.identity.fingerprint:
            message = f"the statistics here were calibrated {self.identity.difference(record.digests)}"
            raise TargetConflict(f"{message}; choose another folder, or use --overwrite", uri=self.store.uri)
        return record

    def _read(self) -> Calibration:
        return Calibration.from_bytes(
            self.store.read(CALIBRATION_PATH), self.store.uri, self.store.url(CALIBRATION_PATH)
        )

    def _refuse_others(self, found: Listing) -> None:
        if SETTINGS_PATH in found:
            self._refuse_other_run()
            return
        strange = [path for path in found.sizes if not is_temporary(path)]
        if strange:
            message = f"the folder holds other files ({listed(sorted(strange))}); choose an empty or new one"
            raise TargetConflict(message, uri=self.store.uri)

    def _refuse_other_run(self) -> None:
        try:
            there = Identity.from_dict(parse_json(self.store.read(SETTINGS_PATH)))
        except (ValueError, TypeError, KeyError, AttributeError):
            self._refuse_begun("whose settings cannot be read")
        except NotFound:
            self._refuse_begun("that another process is removing")
        if there.fingerprint != self.identity.fingerprint:
            self._refuse_begun(self.identity.difference(there.digests))

    def _refuse_begun(self, which: str) -> NoReturn:
        message = f"a calibration {which} was begun here; choose another folder, or use --overwrite"
        raise TargetConflict(message, uri=self.store.url(SETTINGS_PATH))

    def _clear(self, found: Listing) -> None:
        """Deletes what calibrations have left, and nothing else; the record first."""
        if CALIBRATION_PATH not in found and SETTINGS_PATH not in found:
            return
        if CALIBRATION_PATH in found:
            self._read()  # refuses the record of another program
        ours = [path for path in found.sizes if is_ours(path) or is_temporary(path)]
        for path in sorted(ours, key=lambda path: (path != CALIBRATION_PATH, path == SETTINGS_PATH, path)):
            self.store.delete_unchanged({path: found.versions[path]})
