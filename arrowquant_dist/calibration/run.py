"""calibrate(): texts go through a model part by part, and what its layers see of them becomes statistics.

Without a config there is one path, the original's, which gives each layer's Hessian H = E[x xᵀ]. With a config there
are two, the original's and that of the model quantized so far: H = E[x̃ x̃ᵀ] of the inputs on the quantized path,
C = E[x x̃ᵀ], and, for layers whose results are added to a stream r, D = E[(r − r̃) x̃ᵀ]. Layers are quantized in the order
in which they run, each with the statistics that are written for it, as `quantize` does it later in any order.

Memory: for each path the weights of one part (a block, or what is before or behind all blocks), and for each worker a
slice of the texts and some of its sums. Where the budget has no room for all sums of a stage, the texts go through it
several times. Activations between parts are kept in OUT.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from arrowquant_dist.calibration.arrays import ArrayDraft, ArrayFile, write_arrays
from arrowquant_dist.calibration.identity import Identity
from arrowquant_dist.calibration.layout import statistics_path
from arrowquant_dist.calibration.memory import SharedMemory
from arrowquant_dist.calibration.parts import Parts
from arrowquant_dist.calibration.place import CalibrationPlace, PartDone
from arrowquant_dist.calibration.quantizing import PathQuantizer
from arrowquant_dist.calibration.record import CalibratedLayer, Calibration
from arrowquant_dist.calibration.sensitivities import (
    known_sensitivities,
    quantizes_by_them,
    sensitivity_notes,
)
from arrowquant_dist.calibration.steps import Steps
from arrowquant_dist.calibration.worker import OPEN_PATHS, CalibrationContext, write_tokens
from arrowquant_dist.checkpoint.sampled import SampledWeights
from arrowquant_dist.code_digest import calibration_digest
from arrowquant_dist.config import (
    QuantizationConfig,
    RunConfig,
    SpecResolver,
    check_config,
    check_run,
    parse_size,
)
from arrowquant_dist.engine import choose_engine
from arrowquant_dist.errors import InvalidConfig, NotFound, PartialRun, StorageError, listed
from arrowquant_dist.location import Location, location
from arrowquant_dist.machine import give_back_large_memory
from arrowquant_dist.progress.callers import told_to
from arrowquant_dist.progress.steps import shown_steps
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import is_ambiguous, lies_within, redact
from arrowquant_dist.texts import Texts, read_texts
from arrowquant_dist.texts.steps import StepCallback

if TYPE_CHECKING:
    from arrowquant_dist.models.checkpoint import CheckpointLoads
    from arrowquant_dist.models.paths import Paths
    from arrowquant_dist.models.subject import Subject
    from arrowquant_dist.models.tokens import TokenizedTexts

_LEAST_TOKENS = 32
_PROCESS_NBYTES = 512 << 20  # of libraries in an actor of Ray; the budget is for the model and the texts


def calibrate(
    model: Location,
    out: Location,
    texts: Location | Sequence[str],
    *,
    quantize: QuantizationConfig | None = None,
    column: str | None = None,
    memory_budget: str | int = "2GiB",
    run: RunConfig | None = None,
    progress: StepCallback | bool | None = True,
) -> Calibration:
    """Runs texts through a model and writes statistics of what its layers see to the folder `out`, for `method: gptq`
    with `hessians: out`. The same call again resumes, or returns the finished result.

    model: the model, as a source of `quantize`: a folder, a file in the model's folder, a URL, or `minilm`.
    out: a folder or a URL.
    texts: a .txt, .jsonl or .parquet file or URL, `builtin`, `builtin:more`, or a list of texts (texts/read.py).
    quantize: the config that the dataset will be made with; each layer then sees what the quantized layers before it
        produce, and the statistics correct for that. None: all layers see what the original's produce.
    column: column or key of the texts in .jsonl and .parquet files; None: `text`.
    memory_budget: memory of a process for weights, texts and sums, in addition to the libraries (about 500 MB); less
        means more passes over the texts, and the same statistics.
    run: engine, workers, overwrite, storage options.
    progress: True shows progress in a terminal or a notebook, and only there; False shows none; a function is called
        with each TextsStep.

    Raises InvalidConfig for texts and models that cannot be calibrated, and for a memory budget that is too small, with
    one that is enough; ModelMismatch, TargetConflict if `out` holds something else, SourceChanged, StorageError.
    """
    run = RunConfig() if run is None else run
    check_run(run)
    limit = parse_size(memory_budget, "memory_budget")
    found = read_texts(texts, column, run.source_storage)
    with told_to(progress, shown_steps, "calibrate") as told:
        return run_calibration(model, out, found, quantize, limit, run, told)


def run_calibration(
    model: Location,
    out: Location,
    texts: Texts,
    config: QuantizationConfig | None,
    memory_nbytes: int,
    run: RunConfig,
    progress: StepCallback | None,
) -> Calibration:
    """`calibrate` with texts that were read, a budget in bytes, and a callback."""
    from arrowquant_dist.models.pair import opened_model
    from arrowquant_dist.models.paths import Paths
    from arrowquant_dist.models.subject import Subject, refuse_too_few
    from arrowquant_dist.models.threads import threads

    if config is not None:
        check_config(config)
    out = location(out, "out")
    if is_ambiguous(out):
        raise InvalidConfig(
            "OUT has an empty name, `.` or `..` in it; spell it without them", uri=redact(out)
        )
    unscaled = tuple(config.unscaled_float8) if config is not None else ()
    store = open_store(out, run.target_storage)
    give_back_large_memory()
    # torch with one thread a worker, so that sums do not depend on the number of CPUs
    with threads(1), opened_model(model, run.source_storage, memory_nbytes, unscaled) as opened:
        subject = Subject.of(opened)
        source: CheckpointLoads = opened.source  # type: ignore[assignment]
        _refuse_own_source(store.uri, source)
        tokens = subject.tokens(texts.items)
        refuse_too_few(tokens, _LEAST_TOKENS)
        settings = _settings(subject, tokens, texts, config)
        place = CalibrationPlace(store, _identity(settings, source))
        record = place.begin(overwrite=run.overwrite)
        if record is not None:
            return record
        context = CalibrationContext(
            f"{store.uri} {place.identity.fingerprint}",
            location(model, "model"),
            out,
            run.source_storage,
            run.target_storage,
            memory_nbytes,
            unscaled,
            config is not None,
        )
        try:
            write_tokens(store, tokens)
            if config is not None and config.size is not None:
                config = place.config(partial(_chosen, subject, place, tokens, config, run, out))
            paths = Paths(subject, tokens, is_sequential=config is not None)
            is_by_rows = config is not None and quantizes_by_them(config, paths.tied_heads)
            sensitivities = known_sensitivities(subject, store, tokens) if is_by_rows else None
            OPEN_PATHS.set(context, paths)
            done = _calibrated_parts(paths, place, context, run, tokens, config, sensitivities, progress)
        except (NotFound, PartialRun, StorageError):
            record = place.finished_meanwhile()
            if record is None:
                raise
            return record
        finally:
            OPEN_PATHS.drop(context)
        weights = SampledWeights.of(source.checkpoint, run.source_storage)
        found = _record(place, subject, paths, settings, config, done, weights)
        notes = (*found.notes, *sensitivity_notes(paths, tokens, config, found.layers))
        return place.finish(replace(found, notes=notes))


def _chosen(
    subject: Subject,
    place: CalibrationPlace,
    tokens: TokenizedTexts,
    config: QuantizationConfig,
    run: RunConfig,
    out: str,
) -> QuantizationConfig:
    from arrowquant_dist.models.weighing import weighed_steps
    from arrowquant_dist.sizing import table_for_calibration  # other calibrations need not import it

    source: CheckpointLoads = subject.opened.source  # type: ignore[assignment]
    counts = np.bincount(np.concatenate([np.asarray(row, np.int64) for row in tokens.ids]))
    steps, sensitivities = weighed_steps(subject, tokens), known_sensitivities(subject, place.store, tokens)
    return table_for_calibration(source.checkpoint, config, run, out, steps, counts, sensitivities)


def _calibrated_parts(
    paths: Paths,
    place: CalibrationPlace,
    context: CalibrationContext,
    run: RunConfig,
    tokens: TokenizedTexts,
    config: QuantizationConfig | None,
    sensitivities: ArrayFile | None,
    progress: StepCallback | None,
) -> list[PartDone]:
    """Calibrates all parts in one run of an engine, whose workers stay from part to part."""
    lengths = tokens.lengths
    sizes = [sum(lengths[text] for batch in found for text in paths.batches[batch]) for found in paths.slices]
    quantizer = PathQuantizer(config, paths.layers) if config is not None else None
    engine = choose_engine(run, context.memory_nbytes + _PROCESS_NBYTES)
    memory = SharedMemory(context.memory_nbytes, engine.workers_of_a_process(len(sizes)))
    told = Steps(progress)
    parts = Parts(paths, place, context, memory, sizes, quantizer, sensitivities, told)
    engine.run_steps(context, parts.jobs(), told.on_event, len(sizes))
    return parts.done


def _settings(
    subject: Subject, tokens: TokenizedTexts, texts: Texts, config: QuantizationConfig | None
) -> dict[str, Any]:
    """What decides the statistics, besides the model's weights."""
    ids = xxhash.xxh3_128()
    for row in tokens.ids:
        ids.update(np.array([len(row), *row], np.int64).tobytes())
    model_config = json.loads(subject.kind.config.to_json_string(use_diff=False))
    model_config.pop("_name_or_path", None)  # the path of a copy that is removed afterwards
    return {
        "architecture": subject.kind.architecture,
        "texts": {
            "name": texts.name,
            "count": len(texts),
            "tokens": sum(tokens.lengths),
            "digest": texts.digest,
            "cut": tokens.cut,
        },
        "ids": ids.hexdigest(),
        "model_config": model_config,
        "config": _said(config),
        "code": calibration_digest(),
    }


def _said(config: QuantizationConfig | None) -> dict[str, Any] | None:
    return None if config is None else {k: v for k, v in config.to_dict().items() if k != "hessians"}


def _identity(settings: Mapping[str, Any], source: CheckpointLoads) -> Identity:
    files = [[redact(file.uri), file.nbytes, file.version] for file in source.checkpoint.files]
    known = {key: settings[key] for key in ("architecture", "model_config")}
    texts = {key: value for key, value in settings["texts"].items() if key != "name"}
    return Identity.of(
        model={**known, "files": files, "aliases": dict(source.checkpoint.aliases)},
        texts={**texts, "ids": settings["ids"]},
        config=settings["config"],
        code=settings["code"],
    )


def _record(
    place: CalibrationPlace,
    subject: Subject,
    paths: Paths,
    settings: Mapping[str, Any],
    config: QuantizationConfig | None,
    done: Sequence[PartDone],
    weights: SampledWeights,
) -> Calibration:
    """The record. Also writes empty statistics for layers of which no part has seen an input."""
    layers = _merged(layer for part in done for layer in part.layers)
    unfit = [name for part in done for name in part.unfit]
    known = {layer.name for layer in layers}
    resolver = SpecResolver(QuantizationConfig("int8"), [*paths.layers.values()])
    rest = [
        layer.name
        for layer in paths.layers.values()
        if layer.name not in known
        and resolver.resolve(layer.name, layer.shape, layer.dtype).spec.is_quantized
    ]
    if rest:
        drafts = [ArrayDraft.of(f"{name}.unseen", np.empty(0, np.float32)) for name in rest]
        write_arrays(place.store, statistics_path(paths.parts, 0), drafts)
        layers += [CalibratedLayer(name, 0, ("unseen",)) for name in rest]
    used = {name for part in done for name in part.strange}
    strange = [name for name in rest if name in used and name not in unfit]
    unseen = [name for name in rest if name not in unfit and name not in used]
    return Calibration(
        out=place.store.uri,
        model=subject.opened.source.uri,
        architecture=settings["architecture"],
        texts=settings["texts"],
        sequential=config is not None,
        config=_said(config),
        fingerprint=place.identity.fingerprint,
        layers=tuple(layers),
        unseen=tuple(unseen),
        unfit=tuple(unfit),
        strange=tuple(strange),
        notes=tuple(_notes(paths, subject, settings, unseen, unfit, strange)),
        weights=weights,
        digests=place.identity.digests,
    )


def _merged(layers: Iterable[CalibratedLayer]) -> list[CalibratedLayer]:
    """Each layer once, with all of its parts."""
    found: dict[str, CalibratedLayer] = {}
    for layer in layers:
        before = found.get(layer.name)
        found[layer.name] = layer if before is None else replace(before, parts=before.parts + layer.parts)
    return [*found.values()]


def _notes(
    paths: Paths,
    subject: Subject,
    settings: Mapping[str, Any],
    unseen: Sequence[str],
    unfit: Sequence[str],
    strange: Sequence[str],
) -> list[str]:
    notes = []
    texts = settings["texts"]
    if texts["cut"]:
        notes.append(f"texts that were cut to what the model takes: {texts['cut']} of {texts['count']}")
    widest = max((layer.shape[-1] for layer in paths.layers.values() if len(layer.shape) > 1), default=0)
    if texts["tokens"] < 4 * widest:
        notes.append(f"{texts['tokens']} tokens are few for layers of {widest} inputs; statistics are noisy")
    if behind := [name for name in unseen if name in subject.behind]:
        notes.append(
            f"modules behind the model of transformers are not calibrated: {listed(behind)}; the input of such a layer "
            "is one pooled vector per text, but statistics are of tokens, so it is quantized by mse"
        )
    if never := [name for name in unseen if name not in subject.behind]:
        notes.append(f"no input reached {listed(never)}; such layers are quantized by mse")
    if strange:
        notes.append(
            f"the model uses {listed(strange)} in other ways than products that calibrate recognizes (inputs times a "
            "matrix, rows looked up); such layers are quantized by mse"
        )
    if unfit:
        notes.append(
            f"inputs that fit no axis of the layer, as the source stores it: {listed(unfit)}; such layers are "
            "quantized by mse"
        )
    if paths.parts == 1:
        notes.append("its blocks do not form a chain, so all of its weights were in memory at once")
    return notes


def _refuse_own_source(out: str, source: CheckpointLoads) -> None:
    """Raises InvalidConfig where OUT is the model's own folder: statistics would lie among its weights."""
    for file in source.checkpoint.files:
        if lies_within(redact(file.uri), out):
            raise InvalidConfig(f"OUT holds the model itself ({redact(file.uri)}); choose another folder")
