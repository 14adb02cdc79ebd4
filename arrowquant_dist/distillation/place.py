"""The places of a distillation: the dataset that is trained, and the target of the new one.

The new dataset has the config of the trained one and, under `distillation`, what it was made of. A target with a
finished dataset of the same distillation is done. Where a run of the same was stopped, the dataset is written again,
since the trained values are not kept twice. Anything else is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import DISTILLATION_KEY, RUN_KEY, RunConfig
from arrowquant_dist.distillation.checkpoint import TrainingStates
from arrowquant_dist.distillation.settings import DistillSettings
from arrowquant_dist.driver.places import open_target, read_sidecars, refuse_own_source
from arrowquant_dist.errors import InvalidConfig, TargetConflict
from arrowquant_dist.location import Location, location
from arrowquant_dist.models.original import trained_names
from arrowquant_dist.report.evaluations import dataset_identity
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import real_place
from arrowquant_dist.target.clear import clear
from arrowquant_dist.target.layout import Listing
from arrowquant_dist.target.manifest import Manifest
from arrowquant_dist.target.target import Target
from arrowquant_dist.texts import Texts


@dataclass(frozen=True, slots=True)
class DistilledPlace:
    """manifest: manifest of the dataset that is trained. reasons: {layer: why it is kept there}. out: target of the new
    dataset. made_of: what identifies the distillation, plain values."""

    manifest: Manifest
    reasons: Mapping[str, str]
    out: Target
    made_of: Mapping[str, Any]
    run: RunConfig

    @classmethod
    def of(
        cls, target: Location, out: Location, texts: Texts, settings: DistillSettings, run: RunConfig
    ) -> DistilledPlace:
        """Opens both places. Raises NotFound where no finished dataset is at `target`, and InvalidConfig where `out` is
        the same place."""
        place = location(target, "target")
        store = open_store(place, run.target_storage)
        manifest = Manifest.of_finished(store, "which could be trained")
        opened = open_target(location(out, "out"), run)
        if real_place(opened.store.uri) == real_place(store.uri):
            message = "the new dataset would replace the one that is trained; choose another OUT"
            raise InvalidConfig(message, uri=opened.store.uri)
        reasons = manifest.kept_reasons(store)
        made_of = {
            "dataset": dataset_identity(manifest),
            "texts": {"name": texts.name, "count": len(texts), "digest": texts.digest, "recombined": True},
            "settings": settings.to_dict(),
        }
        return cls(manifest, reasons, opened, json.loads(json.dumps(made_of)), run)

    @property
    def trained_before(self) -> frozenset[str]:
        """Layers that are kept with values other than the original's."""
        return trained_names(self.reasons)

    def config(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """The config of the new dataset. result: the result of the training."""
        said = {key: value for key, value in self.manifest.config.items() if key != RUN_KEY}
        return {**said, DISTILLATION_KEY: {**self.made_of, "result": dict(result)}}

    def finished(self) -> Mapping[str, Any] | None:
        """The result of the same distillation, if its dataset is there. Raises TargetConflict where another dataset
        is."""
        manifest = self.out.manifest()
        if manifest is None or self.run.overwrite:
            return None
        found = manifest.config.get(DISTILLATION_KEY)
        if not isinstance(found, dict) or self._differs(found):
            raise self._conflict(
                "another dataset" if not isinstance(found, dict) else self._difference(found)
            )
        result: Mapping[str, Any] = found["result"]
        return result

    def look(self, checkpoint: Checkpoint) -> Listing:
        """Lists the target, cleared of what may be replaced. Raises TargetConflict where it may not be written to."""
        refuse_own_source(self.out, [checkpoint])
        found = self.out.look(checkpoint.sidecars)
        sidecars = read_sidecars(checkpoint, self.run)
        if self.run.overwrite:
            self.states.delete()
        found = replace(found, beside=frozenset(self._own_states()))
        state = self.out.state(found, sidecars)
        if state == "started" and not self.run.overwrite:
            self._refuse_other_run()
        if state in ("left", "foreign") and not self.run.overwrite:
            self.out.refuse_foreign(found, sidecars)
        if state != "empty":
            found = clear(self.out, found, sidecars)
        return replace(found, beside=frozenset((*found.beside, *self.states.paths())))

    @property
    def states(self) -> TrainingStates:
        return TrainingStates(self.out.store, self.made_of)

    def _own_states(self) -> list[str]:
        """Paths of the states of a stopped training. Raises TargetConflict where they are of another one."""
        paths = self.states.paths()
        if paths and not self.states.is_own:
            raise self._conflict("the state of another training")
        return paths

    def _refuse_other_run(self) -> None:
        planned = self.out.planned()
        if planned is None:
            return
        config = json.loads((planned.table.schema.metadata or {}).get(b"arrowquant.config", b"{}"))
        found = config.get(DISTILLATION_KEY)
        if not isinstance(found, dict) or self._differs(found):
            raise self._conflict("another run" if not isinstance(found, dict) else self._difference(found))

    def _differs(self, found: Mapping[str, Any]) -> bool:
        return {key: found.get(key) for key in self.made_of} != dict(self.made_of)

    def _difference(self, found: Mapping[str, Any]) -> str:
        other = [key for key, value in self.made_of.items() if found.get(key) != value]
        return f"another distillation (its {' and '.join(other)} differ)"

    def _conflict(self, what: str) -> TargetConflict:
        message = f"the target holds {what}; choose another OUT, or use --overwrite to replace it"
        return TargetConflict(message, uri=self.out.store.uri)
