"""Side inputs: what methods need beside a layer's values (methods.SideInput), located by their headers. Plans without
such a method read none.

A side input is a checkpoint like the source itself: named tensors at a URI that the config contains. So only its
headers are read to find it, its files' identities are part of the plan's fingerprint, and a file that changes before
it is read is noticed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from arrowquant_dist.checkpoint.digests import digests_name, digests_shape
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.sampled import SampledWeights
from arrowquant_dist.checkpoint.table import Checkpoint, Layer, SourceFile
from arrowquant_dist.config import QuantizationConfig, QuantSpec, Storage
from arrowquant_dist.encodings.raw import RAW
from arrowquant_dist.errors import InvalidConfig, NotFound, counted, listed
from arrowquant_dist.method_names import METHODS
from arrowquant_dist.methods import method_of, side_input_of
from arrowquant_dist.plan.check import check_checkpoint
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import redact, split_uri
from arrowquant_dist.strict_json import parse_json

SideInputs = Mapping[str, Checkpoint]  # {field of the config: the checkpoint at the URI in it}
_DTYPE = "float32"
# The fields of a config that decide how a layer is quantized.
_DECIDES = (
    "quant_type",
    "per_channel",
    "group_size",
    "symmetric",
    "integer_zero_points",
    "method",
    "scale_dtype",
    "mixed_precision_layers",
    "overrides",
    "row_dims",
)


def open_side_inputs(config: QuantizationConfig, storage: Storage) -> SideInputs:
    """The side inputs of the methods that `config` names, with the records that mark them as finished. Raises what
    open_checkpoint raises, and InvalidConfig for a side input that is not finished, or whose format version is not
    the one supported."""
    found = {}
    for field, name in _needed(config):
        checkpoint = open_checkpoint(getattr(config, field), storage)
        found[field] = replace(checkpoint, record=_record(field, name, checkpoint, storage))
    return found


def refuse_other_weights(
    config: QuantizationConfig, side_inputs: SideInputs, checkpoint: Checkpoint, storage: Storage
) -> None:
    """Raises InvalidConfig if a side input of `config` that records sampled values of layers was made from another
    model than the source, `checkpoint`; InvalidCheckpoint for a source with an inconsistent layer table. Raises what
    reading raises."""
    for field, name in _needed(config):
        side_input, side = side_input_of(name), side_inputs[field]
        if side_input is None or side_input.finished_by is None or not side_input.is_of_weights:
            continue
        if not side.files:
            continue
        check_checkpoint(checkpoint)
        uri = redact(_store_of(side, storage).url(side_input.finished_by))
        difference = SampledWeights.from_dict(side.record.get("weights"), uri).difference(checkpoint, storage)
        if difference is not None:
            message = (
                f"{field} were collected from other weights than those of {redact(checkpoint.uri)} ({difference}); "
                "run the command that makes them for this model"
            )
            raise InvalidConfig(message, uri=uri)


def used_side_inputs(config: QuantizationConfig, side_inputs: SideInputs) -> SideInputs:
    """Those of `side_inputs`, opened for a config from which `config` was chosen, that `config` uses."""
    return {field: side_inputs[field] for field, _ in _needed(config)}


def _needed(config: QuantizationConfig) -> list[tuple[str, str]]:
    """(field of the config, method that uses the side input there) for what the config's methods need."""
    names = {config.method, *(override.method for override in config.overrides)}
    if config.size is not None and config.hessians is not None:
        names.add("gptq")  # one of the methods that `size` then chooses from
    needed = {METHODS[name]: name for name in sorted(name for name in names if name is not None)}
    return sorted((field, name) for field, name in needed.items() if field is not None)


def _record(field: str, name: str, checkpoint: Checkpoint, storage: Storage) -> Mapping[str, Any]:
    """Checkpoint.record of the side input of method `name`; empty if that side input has none."""
    side_input = side_input_of(name)
    if side_input is None or side_input.finished_by is None or not checkpoint.files:
        return {}
    try:
        data = _store_of(checkpoint, storage).read(side_input.finished_by)
    except NotFound as error:
        message = (
            f"{field} has no {side_input.finished_by}, which is written last, so it is not finished; run the command "
            "that makes it again"
        )
        raise InvalidConfig(message, uri=redact(checkpoint.uri)) from error
    record, known = _values_of(data), side_input.format_version
    if record is None and known is not None:
        message = (
            f"{field} has a {side_input.finished_by} that is damaged; run the command that makes it again"
        )
        raise InvalidConfig(message, uri=redact(checkpoint.uri))
    record = record or {}
    version = None if known is None else _version_of(record)
    if version != known:
        says = f"{field} has a {side_input.finished_by} of format_version {version!r}, but this release reads {known}"
        is_newer = version is not None and known is not None and version > known
        what = "update this package" if is_newer else "run the command that makes it again"
        raise InvalidConfig(f"{says}; {what}", uri=redact(checkpoint.uri))
    return record


def _store_of(checkpoint: Checkpoint, storage: Storage) -> Store:
    folder, _ = split_uri(checkpoint.files[0].uri)
    return open_store(folder, storage)


def _version_of(record: Mapping[str, Any]) -> int | None:
    """The format version; None if the record does not have one."""
    version = record.get("format_version")
    return version if isinstance(version, int) and not isinstance(version, bool) else None


def _values_of(data: bytes) -> Mapping[str, Any] | None:
    """The values of a JSON object; None if the data is not a JSON object."""
    try:
        values = parse_json(data)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def described(side_inputs: SideInputs) -> dict[str, Any]:
    """{field: {uri, format, files}}, as in Plan.source: URIs without credentials."""
    return {field: described_source(checkpoint) for field, checkpoint in side_inputs.items()}


def described_source(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint as Plan.source describes it."""
    source: dict[str, Any] = {
        "uri": redact(checkpoint.uri),
        "format": checkpoint.format,
        "files": _described(checkpoint.files),
    }
    if checkpoint.sidecar_files:
        source["sidecars"] = _described(checkpoint.sidecar_files)
    if checkpoint.largest_row_nbytes:
        source["largest_row_nbytes"] = checkpoint.largest_row_nbytes
    return source


def _described(files: Iterable[SourceFile]) -> list[dict[str, Any]]:
    return [{"uri": redact(f.uri), "nbytes": f.nbytes, "version": f.version} for f in files]


class SideTensors:
    """Finds the side tensors of layers. Raises InvalidCheckpoint for inconsistent headers."""

    def __init__(self, side_inputs: SideInputs) -> None:
        self._side_inputs = side_inputs
        self._stored: dict[str, dict[str, Layer]] = {}
        self._exempt: dict[tuple[str, str, str, str, str], list[str]] = defaultdict(list)
        self._used: set[str] = set()
        for field, checkpoint in side_inputs.items():
            check_checkpoint(checkpoint)
            self._stored[field] = {layer.name: layer for layer in checkpoint.layers}

    def of(self, layer: Layer, spec: QuantSpec) -> tuple[QuantSpec, tuple[Layer, ...]]:
        """The spec for the layer, and its side tensors under the names `{layer}.{part}`. The spec is replaced if the
        side input says that it has nothing about the layer. The tensors are those of the parts that are there, in the
        order of the method's `shapes`, each followed by its digests if it has any; () for a layer that needs none.

        Raises InvalidConfig, naming the layer, if none of the needed tensors is there, or one is not plain float32 of
        its shape.
        """
        side_input = method_of(spec, layer.name).side_input if spec.chooses_codes else None
        if side_input is None:
            return spec, ()
        field = side_input.config_field
        needed = side_input.needed(spec)
        there = [part for part in needed if self._stored_as(field, layer, part) is not None]
        if not there:
            for part in side_input.exempt:
                if self._stored_as(field, layer, part) is not None:
                    instead = side_input.instead(spec)
                    is_known = part in side_input.shapes(layer.shape, spec.row_dims)
                    lack = "no tensor that the method uses" if is_known else "no statistics of inputs"
                    self._exempt[spec.method, instead.method, field, part, lack].append(layer.name)
                    return instead, ()
        self._used.add(field)
        found = []
        for part, shape in side_input.shapes(layer.shape, spec.row_dims).items():
            stored = self._stored_as(field, layer, part)
            if stored is not None or (not there and part == needed[0]):
                found.append(self._checked(layer, field, f"{layer.name}.{part}", shape, stored))
                found += self._digests(layer, field, part, found[-1].nbytes)
        return spec, tuple(found)

    def notes(self, config: QuantizationConfig) -> list[str]:
        """Notes for people: layers that get another method than the config says, and side inputs that the config
        names but no layer uses."""
        methods: defaultdict[str, list[str]] = defaultdict(list)
        for method, named in METHODS.items():
            if named is not None:
                methods[named].append(method)
        return [
            *(
                f"{field} is not used: no layer that it has statistics of is quantized by {' or '.join(names)}"
                for field, names in methods.items()
                if getattr(config, field) is not None and field not in self._used
            ),
            *self._exempt_notes(),
            *(note for field in sorted(self._used) for note in self._other_config_notes(field, config)),
        ]

    def _other_config_notes(self, field: str, config: QuantizationConfig) -> list[str]:
        """A note if layers were quantized while these tensors were made, by a config that decides otherwise than
        `config`. For a config chosen for a size, this is compared where it is chosen."""
        by = self._side_inputs[field].record.get("config")
        if not isinstance(by, Mapping) or config.size is not None or config.chosen_for is not None:
            return []
        own = config.to_dict()
        other = [key for key in _DECIDES if by.get(key) != own.get(key)]
        if not other:
            return []
        return [
            f"{field} were collected from layers quantized by another config ({listed(other)}), so codes make up for "
            "that config's errors; calibrate with this one"
        ]

    def _exempt_notes(self) -> list[str]:
        return [
            f"{instead} instead of {method} for {counted(len(names), 'layer')}, for which {field} has only {part!r} "
            f"and {lack}: {listed(names)}"
            for (method, instead, field, part, lack), names in self._exempt.items()
        ]

    def _stored_as(self, field: str, layer: Layer, part: str) -> Layer | None:
        name = f"{layer.name}.{part}"
        return self._stored[field].get(self._side_inputs[field].aliases.get(name, name))

    def _digests(self, layer: Layer, field: str, part: str, nbytes: int) -> list[Layer]:
        """The digests of a part, if it has any."""
        stored = self._stored_as(field, layer, digests_name(part))
        if stored is None:
            return []
        if (stored.shape, stored.dtype, stored.encoding) != (digests_shape(nbytes), "uint8", RAW):
            message = f"{field} has {stored.name!r}, which does not hold digests; make {field} again"
            raise InvalidConfig(message, layer=layer.name, uri=redact(self._side_inputs[field].uri))
        return [replace(stored, name=f"{layer.name}.{digests_name(part)}")]

    def _checked(
        self, layer: Layer, field: str, name: str, shape: tuple[int, ...], stored: Layer | None
    ) -> Layer:
        """`stored`, renamed to `name`. Raises InvalidConfig if it is missing or of another shape or dtype."""
        if stored is None:
            problem = f"{field} has no tensor {name!r}"
        elif (stored.shape, stored.dtype, stored.encoding) != (shape, _DTYPE, RAW):
            found = f"{list(stored.shape)} of {stored.dtype}, {stored.encoding.label}"
            problem = f"{field} has {name!r} as {found}, not as plain {_DTYPE} of {list(shape)}"
        else:
            return stored if stored.name == name else replace(stored, name=name)
        message = f"{problem}; choose another method for the layer with an override, or make {field} again"
        raise InvalidConfig(message, layer=layer.name, uri=redact(self._side_inputs[field].uri))


def rows_together(layer: Layer, spec: QuantSpec, tensors: Iterable[Layer]) -> int:
    """The number of the layer's rows that no row block may separate. tensors: the layer's side tensors."""
    parts = [tensor.name.removeprefix(f"{layer.name}.") for tensor in tensors]
    side_input = method_of(spec, layer.name).side_input if parts else None
    return 1 if side_input is None else side_input.rows_together(layer.shape, spec.row_dims, parts)
