"""Notes on what readers of the figures have to know. Each has a name, and gives the numbers of this source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from arrowquant_dist.errors import counted
from arrowquant_dist.reduce.layer_types import NORM
from arrowquant_dist.report import text
from arrowquant_dist.report.evaluated import measures
from arrowquant_dist.report.view import WEIGHT_COSINE_NOTE
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.validation.figures import DatasetFigures, LoadTime, NamedNote, SourceFigures
from arrowquant_dist.validation.targets import Targets


def notes_of(
    source: SourceFigures, datasets: Sequence[DatasetFigures], targets: Targets, v1: LoadTime | None
) -> tuple[NamedNote, ...]:
    """All notes, in the order of the tables that they explain."""
    every = (
        *_size(source),
        *_efficiency(datasets),
        *_layers(source, datasets),
        *_weights(datasets),
        *_outputs(datasets),
        *_norms(datasets),
        *_speed(datasets),
        *_loading(source, datasets, v1),
        *_memory(),
        *_unused(targets, datasets),
    )
    return tuple(every)


def _size(source: SourceFigures) -> Iterator[NamedNote]:
    shares = ", ".join(f"{dtype} ({text.params(params)})" for dtype, params in source.dtypes.items())
    half, whole = text.nbytes(source.fp16_nbytes), text.nbytes(source.nbytes)
    if source.nbytes == source.fp16_nbytes:
        said = f"the source is {shares}: {whole}. It takes as much at fp16, so both ratios are the same"
    else:
        said = (
            f"the source is {shares}: {whole}. At fp16 it takes {half}. “Against fp16” is relative to {half}, and "
            f"“against the source” to {whole}, which is {text.times(source.nbytes / source.fp16_nbytes)} as much. "
            f"Reports that call the {_first(source)} file of {whole} “fp16” state the second ratio under the name of "
            "the first"
        )
    yield NamedNote("size-of-the-source", said)


def _first(source: SourceFigures) -> str:
    return next(iter(source.dtypes), "nothing")


def _efficiency(datasets: Sequence[DatasetFigures]) -> Iterator[NamedNote]:
    said = [
        f"{text.share(one.compression.efficiency)} ({one.name})"
        for one in datasets
        if one.compression.efficiency is not None
    ]
    if said:
        yield NamedNote(
            "efficiency",
            "the theoretical ratio is that of the codes alone: 16 bits divided by the bits of a code. The actual one "
            f"is {', '.join(said)} of it. Scales, zero points, kept layers and Parquet's framing reduce the ratio; "
            "entropy coding of the codes raises it. Above 100 %, entropy coding gains more than the others cost",
        )


def _layers(source: SourceFigures, datasets: Sequence[DatasetFigures]) -> Iterator[NamedNote]:
    if not datasets:
        return
    quantized = sum(row.is_quantized for row in datasets[0].layers)
    yield NamedNote(
        "layers",
        f"a layer is a named tensor: the source has {source.layers}, of which {datasets[0].name} quantized "
        f"{quantized}. Errors and their distribution are over these; counts of blocks or modules are different numbers",
    )


def _weights(datasets: Sequence[DatasetFigures]) -> Iterator[NamedNote]:
    yield NamedNote("weight-cosine", WEIGHT_COSINE_NOTE)
    found = [(one, one.report.accuracy, one.evaluation) for one in datasets]
    said = [
        f"{one.name}: weight cosine {text.cosine(accuracy.cosine.mean)}, {first.label} {first.shown}"
        for one, accuracy, evaluation in found
        if accuracy is not None and accuracy.cosine is not None and evaluation is not None
        for first in measures(evaluation)[:1]
    ]
    if said:
        yield NamedNote("weights-and-outputs", f"both, as measured here: {'; '.join(said)}")


def _outputs(datasets: Sequence[DatasetFigures]) -> Iterator[NamedNote]:
    reasons = dict.fromkeys(one.no_evaluation for one in datasets if one.evaluation is None)
    for reason in reasons:
        names = ", ".join(one.name for one in datasets if one.no_evaluation == reason)
        yield NamedNote("outputs-not-measured", f"the outputs of {names} were not measured: {reason}")


def _norms(datasets: Sequence[DatasetFigures]) -> Iterator[NamedNote]:
    for one in datasets:
        norms = [row for row in one.layers if row.layer_type == NORM]
        if norms and not any(row.is_quantized for row in norms):
            yield NamedNote(
                "norms-are-kept",
                f"layer norms are vectors, {counted(len(norms), 'layer')} here: they are kept byte for byte and lose "
                "nothing, so there is no similarity or loss of quantized norms in these datasets",
            )
            return


def _speed(datasets: Sequence[DatasetFigures]) -> Iterator[NamedNote]:
    made = [one.name for one in datasets if one.speed.measured_now and one.speed.seconds is not None]
    if made:
        yield NamedNote(
            "speed",
            f"made by this validation, one after the other: {', '.join(made)}. The first one imports libraries. "
            "Phase `compile` makes kernels ready: on a new machine each config compiles those that no earlier run "
            "needed, otherwise they are loaded; Ray's workers are processes that load them each time. Phases of "
            "workers are summed over all workers, so they may exceed the duration of the run",
        )
    for one in datasets:
        speed = one.speed
        if speed.seconds is None:
            said = f"{speed.resumed_shards} of its {counted(speed.shards, 'shard')} were finished by an earlier run"
            yield NamedNote(
                "speed-not-measured", f"{one.name}: {said}, so its time is only that of the others"
            )
        elif not speed.measured_now:
            said = f"was already finished by the run of {text.moment(speed.started_at)}: its times are from that run"
            yield NamedNote(
                "speed-of-an-earlier-run", f"{one.name} {said}; --overwrite makes and measures it again"
            )


def _loading(
    source: SourceFigures, datasets: Sequence[DatasetFigures], v1: LoadTime | None
) -> Iterator[NamedNote]:
    places = [("the source", source.uri), *((one.name, one.target) for one in datasets)]
    remote = [name for name, uri in places if not is_local(uri)]
    far = f"; those of {', '.join(remote)} came over the network, which their times include" if remote else ""
    what = "The source" if v1 is None else "The source and its V1 file"
    yield NamedNote(
        "loading",
        "times of datasets include comparing every checksum, and decoding to the source's dtype; "
        f"without checksums ({what[0].lower() + what[1:]}), bytes are only read. Each time is the median of several "
        "runs, with local files in the system's cache: reading from a disk or a network adds the time for the stored "
        f"bytes{far}. The bytes read include the few that may lie between values",
    )


def _memory() -> Iterator[NamedNote]:
    yield NamedNote(
        "memory-at-run-time",
        "decoded weights take as much memory as the source's, however they are stored. As codes "
        "(`load_model(…, codes=True)`, `load_codes_into`) they stay as small as stored. Anything above that is freed "
        "memory that allocators keep. A stream whose tensors are not kept takes at most the loader's memory budget, "
        "for any model",
    )


def _unused(targets: Targets, datasets: Sequence[DatasetFigures]) -> Iterator[NamedNote]:
    unused = targets.unused([one.name for one in datasets])
    if unused:
        yield NamedNote(
            "targets-not-used", f"there are targets for {', '.join(unused)}, which were not validated here"
        )
