"""run_validation(): quantizes, checks, loads, measures and judges, in the order in which it happens."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from arrowquant_dist.checkpoint.open import open_checkpoint, source_uri
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config import Storage
from arrowquant_dist.driver import Outcome, plan_only, quantize
from arrowquant_dist.errors import InvalidConfig, NotFound
from arrowquant_dist.evaluation import choose_by_texts
from arrowquant_dist.location import Location, location
from arrowquant_dist.machine import memory_nbytes
from arrowquant_dist.report.layer_rows import load_layer_rows, parsed_rows
from arrowquant_dist.report.markdown import document_markdown
from arrowquant_dist.report.page import document_page
from arrowquant_dist.storage.temporary import temporary_folder
from arrowquant_dist.storage.uris import redact
from arrowquant_dist.texts import Texts, read_texts
from arrowquant_dist.texts.builtin import HELD_BACK
from arrowquant_dist.texts.steps import StepCallback
from arrowquant_dist.validation.acceptance import check_all_there, check_sound, criteria_of
from arrowquant_dist.validation.document import validation_document
from arrowquant_dist.validation.environment import environment_at
from arrowquant_dist.validation.figures import (
    Check,
    DatasetFigures,
    LoadTime,
    MemoryUse,
    SourceFigures,
    Speed,
    Validation,
)
from arrowquant_dist.validation.loading import dataset_load, source_load
from arrowquant_dist.validation.memory import dataset_kept, measured_memory, source_kept
from arrowquant_dist.validation.named_configs import NamedConfig
from arrowquant_dist.validation.notes import notes_of
from arrowquant_dist.validation.outputs import USUAL_SHARE, measured_outputs
from arrowquant_dist.validation.place import ValidationPlace
from arrowquant_dist.validation.schema import check_v1_read, check_v2_to_v1, check_v2_write
from arrowquant_dist.validation.sizes import compression_of, cosine_bins
from arrowquant_dist.validation.source import refuse_changed, source_figures
from arrowquant_dist.validation.targets import Targets
from arrowquant_dist.validation.telling import ValidationTeller
from arrowquant_dist.verify import verify


@dataclass(frozen=True, slots=True)
class Asked:
    """What to validate, where, and with what. name: the source as it was given, without credentials. most_nbytes:
    memory that models may take to measure their outputs; None: no limit, because texts were asked for."""

    source: str
    place: ValidationPlace
    configs: tuple[NamedConfig, ...]
    targets: Targets
    texts: Texts
    most_nbytes: int | None
    name: str

    @classmethod
    def of(
        cls,
        source: Location,
        out: Location,
        configs: tuple[NamedConfig, ...],
        targets: Targets,
        texts: Location | Sequence[str] | None,
        column: str | None,
    ) -> Asked:
        """Reads targets and texts, and checks everything that can be checked without weights."""
        first = configs[0].run
        targets.refuse_unknown([one.name for one in configs])
        place = ValidationPlace.of(location(out, "out"), first.target_storage)
        found = read_texts(HELD_BACK if texts is None else texts, column, first.source_storage)
        most = USUAL_SHARE * memory_nbytes() if texts is None else None
        name, uri = redact(location(source, "source")), source_uri(source)
        most_nbytes = int(most) if most is not None else None
        return cls(uri, place, configs, targets, found, most_nbytes, name)

    @property
    def source_storage(self) -> Storage:
        return self.configs[0].run.source_storage


def run_validation(asked: Asked, progress: StepCallback | None) -> Validation:
    """Does what `validate` describes. Writes no report if the source has changed by the end; then SourceChanged is
    raised.

    An earlier report is removed once no config is refused, before the first dataset changes. So a report never
    describes datasets that have been replaced, and is never taken for that of a later validation that failed. Finished
    datasets stay, so the next validation only has to measure them."""
    checkpoint = open_checkpoint(asked.source, asked.source_storage)
    asked.place.refuse_others([one.name for one in asked.configs])
    _refuse_unplannable(asked)
    asked.place.withdraw()
    found = _found(asked, checkpoint, ValidationTeller(progress))
    refuse_changed(checkpoint, asked.source, asked.source_storage)
    document = validation_document(found)
    asked.place.write(found.to_dict(), document_markdown(document), document_page(document))
    return found


def _refuse_unplannable(asked: Asked) -> None:
    """Raises what `quantize` would raise for any config before it reads a weight, so that the last config is not
    refused after hours of work on the others. Configs that choose how layers are stored have to read weights for that,
    so they are checked when their turn comes."""
    for one in asked.configs:
        if one.config.size is None and one.config.min_quality is None:
            try:
                plan_only(asked.source, asked.place.target(one.name), one.config, one.run)
            except InvalidConfig as error:
                message = f"config {one.name}: {error.message}"
                raise InvalidConfig(message, layer=error.layer, uri=error.uri) from error


def _found(asked: Asked, checkpoint: Checkpoint, teller: ValidationTeller) -> Validation:
    began, started_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    source = source_figures(checkpoint, asked.name)
    outcomes = {one.name: _quantized(asked, one, teller) for one in asked.configs}
    with temporary_folder() as folder:
        v1, v1_load = check_v1_read(asked.source, asked.source_storage, source, folder)
        checks = [v1, *_checked(asked, source.nbytes, folder, teller)]
    loads = {one.name: _loaded(asked, one, teller) for one in asked.configs}
    loaded = source_load(asked.source, asked.source_storage)
    of_source, *memory = _memory(asked, source, outcomes, loads, teller)
    datasets = tuple(
        _measured(asked, one, outcomes[one.name], loads[one.name], own, teller)
        for one, own in zip(asked.configs, memory, strict=True)
    )
    checks += [check_all_there(one.name, one, source) for one in datasets]
    return Validation(
        out=asked.place.store.uri,
        started_at=started_at,
        seconds=time.monotonic() - began,
        targets=asked.targets.name,
        texts=asked.texts.name,
        environment=environment_at(asked.place.out),
        source=source,
        source_load=loaded,
        v1_load=v1_load,
        source_memory=of_source,
        datasets=datasets,
        checks=tuple(checks),
        criteria=criteria_of(datasets, checks, asked.targets),
        notes=notes_of(source, datasets, asked.targets, v1_load),
    )


def _quantized(asked: Asked, one: NamedConfig, teller: ValidationTeller) -> Outcome:
    target, config = asked.place.target(one.name), one.config
    if config.texts is not None:
        config = choose_by_texts(asked.source, config, one.run, target, progress=teller.of_texts(one.name))
    return quantize(asked.source, target, config, one.run, teller.of_run(f"{one.name}: quantizing"))


def _checked(asked: Asked, nbytes: int, folder: Path, teller: ValidationTeller) -> Iterator[Check]:
    """The checks of each dataset. nbytes: size of all values of the source."""
    for one in asked.configs:
        target, storage = asked.place.target(one.name), one.run.target_storage
        yield check_sound(
            one.name, verify(target, storage, progress=teller.of_bytes(f"{one.name}: verifying"))
        )
        yield check_v2_write(one.name, target, storage)
        yield check_v2_to_v1(one.name, target, one.run, nbytes, folder, teller)


def _loaded(asked: Asked, one: NamedConfig, teller: ValidationTeller) -> LoadTime:
    teller.tell(f"{one.name}: loading", 0, 1)
    found = dataset_load(one.name, asked.place.target(one.name), one.run.target_storage, verified=True)
    teller.tell(f"{one.name}: loading", 1, 1)
    return found


def _memory(
    asked: Asked,
    source: SourceFigures,
    outcomes: Mapping[str, Outcome],
    loads: Mapping[str, LoadTime],
    teller: ValidationTeller,
) -> tuple[MemoryUse, ...]:
    """Memory use of the source, then of each config's dataset."""
    kept = [source_kept(asked.source, asked.source_storage, source.file_nbytes, source.nbytes)]
    for one in asked.configs:
        files = outcomes[one.name].report.totals.parts_nbytes
        target, decoded = asked.place.target(one.name), loads[one.name].decoded_nbytes
        kept.append(dataset_kept(one.name, target, one.run.target_storage, files, decoded))
    teller.tell("memory of processes", 0, len(kept))
    found = measured_memory(kept)
    teller.tell("memory of processes", len(kept), len(kept))
    return found


def _measured(
    asked: Asked,
    one: NamedConfig,
    outcome: Outcome,
    load: LoadTime,
    memory: MemoryUse,
    teller: ValidationTeller,
) -> DatasetFigures:
    target, report = asked.place.target(one.name), outcome.report
    rows = (
        parsed_rows(outcome.layers)
        if outcome.layers is not None
        else load_layer_rows(target, one.run.target_storage)
    )
    if rows is None:
        raise NotFound("its report/layers.parquet is missing; run `quantize --repair`", uri=redact(target))
    params, tell = report.totals.params, teller.of_texts(one.name)
    evaluation, no_evaluation = measured_outputs(
        asked.source, target, asked.texts, one.run, params, asked.most_nbytes, tell
    )
    return DatasetFigures(
        name=one.name,
        target=redact(target),
        report=report,
        layers=rows,
        compression=compression_of(report, rows),
        speed=_speed(outcome),
        distribution=cosine_bins(rows),
        load=load,
        memory=memory,
        evaluation=evaluation,
        no_evaluation=no_evaluation,
    )


def _speed(outcome: Outcome) -> Speed:
    run, timing, totals = outcome.report.run, outcome.report.timing, outcome.report.totals
    resumed = len(run.resumed_shards)
    return Speed(
        wall_seconds=timing.wall_seconds,
        seconds=None if resumed else timing.wall_seconds,
        measured_now=not outcome.already_finished,
        started_at=run.started_at,
        shards=totals.shards,
        resumed_shards=resumed,
        workers=run.workers,
        phases=dict(run.phases),
        worker_phases=dict(timing.phases),
    )
