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
        said = f"the source is {shares}: {whole}, which is what it takes at fp16 too, so both ratios are the same"
    else:
        said = (
            f"the source is {shares}: {whole}. At fp16 it takes {half}. “Against fp16” is against that; a ratio to "
            f"{whole} is “against the source”, {text.times(source.nbytes / source.fp16_nbytes)} the other. Where the "
            f"{_first(source)} file of {whole} is called “fp16”, the second is stated under the name of the first"
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
            f"theoretical is what codes alone would give, 16 bits over theirs: {', '.join(said)} of it. Scales, zero "
            "points, layers that are kept and Parquet's framing take away from it; entropy coding of the codes, which "
            "no table of bits knows, gives back. Above 100 % that gives more than the others take",
        )


def _layers(source: SourceFigures, datasets: Sequence[DatasetFigures]) -> Iterator[NamedNote]:
    if not datasets:
        return
    quantized = sum(row.is_quantized for row in datasets[0].layers)
    yield NamedNote(
        "layers",
        f"a layer is a named tensor: {source.layers} here, of them {quantized} quantized by {datasets[0].name}. "
        "Figures of errors and their distribution are over these; a count of blocks or of modules is another one",
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
        yield NamedNote("weights-and-outputs", f"what both are here: {'; '.join(said)}")


def _outputs(datasets: Sequence[DatasetFigures]) -> Iterator[NamedNote]:
    reasons = dict.fromkeys(one.no_evaluation for one in datasets if one.evaluation is None)
    for reason in reasons:
        names = ", ".join(one.name for one in datasets if one.no_evaluation == reason)
        yield NamedNote(
            "outputs-not-measured", f"what models of {names} make of texts is not measured: {reason}"
        )


def _norms(datasets: Sequence[DatasetFigures]) -> Iterator[NamedNote]:
    for one in datasets:
        norms = [row for row in one.layers if row.layer_type == NORM]
        if norms and not any(row.is_quantized for row in norms):
            yield NamedNote(
                "norms-are-kept",
                f"layer norms are vectors, {counted(len(norms), 'layer')} here: they are kept byte for byte and lose "
                "nothing, so a similarity or a loss of quantized norms is no figure of these datasets",
            )
            return


def _speed(datasets: Sequence[DatasetFigures]) -> Iterator[NamedNote]:
    made = [one.name for one in datasets if one.speed.measured_now and one.speed.seconds is not None]
    if made:
        yield NamedNote(
            "speed",
            f"{', '.join(made)} were made by this validation, one after the other: the first of them imports libraries "
            "and, where it is new on the machine, compiles kernels (its phase `compile`); workers of Ray are processes "
            "that load them for each. Phases of workers are added up over all of them, and may be more than the whole",
        )
    for one in datasets:
        speed = one.speed
        if speed.seconds is None:
            said = f"{speed.resumed_shards} of its {counted(speed.shards, 'shard')} were finished by an earlier run"
            yield NamedNote("speed-not-measured", f"{one.name}: {said}, so its time is of the others alone")
        elif not speed.measured_now:
            said = f"was finished already, by the run of {speed.started_at}: the times are that run's"
            yield NamedNote(
                "speed-of-an-earlier-run", f"{one.name} {said}, not of now; --overwrite measures them anew"
            )


def _loading(
    source: SourceFigures, datasets: Sequence[DatasetFigures], v1: LoadTime | None
) -> Iterator[NamedNote]:
    places = [("the source", source.uri), *((one.name, one.target) for one in datasets)]
    remote = [name for name, uri in places if not is_local(uri)]
    far = f"; those of {', '.join(remote)} came over the network, and its time is theirs" if remote else ""
    what = "The source" if v1 is None else "The source and its V1 file"
    yield NamedNote(
        "loading",
        "times of datasets hold the comparison of every checksum, and decoding to the source's dtype; "
        f"{what[0].lower() + what[1:]} have no checksums, so their bytes are only read. Each is the middle one of "
        "several runs with everything on a disk in the system's cache: a disk that has to be read, or a network, adds "
        f"the time of the stored bytes{far}. What is read holds the little that may lie between values too",
    )


def _memory() -> Iterator[NamedNote]:
    yield NamedNote(
        "memory-at-run-time",
        "weights that are decoded take what the source's take, whatever they are stored as. As codes "
        "(`load_model(…, codes=True)`, `load_codes_into`) they stay as small as they are. What is above either is what "
        "allocators keep of memory that was freed. A stream whose tensors "
        "nobody keeps takes the loader's memory budget at most, of any model",
    )


def _unused(targets: Targets, datasets: Sequence[DatasetFigures]) -> Iterator[NamedNote]:
    unused = targets.unused([one.name for one in datasets])
    if unused:
        yield NamedNote("targets-not-used", f"targets of {', '.join(unused)}, which are not validated here")
