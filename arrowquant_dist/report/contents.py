"""Lists the layers of a checkpoint or dataset, reading headers only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.config.checks import invalid
from arrowquant_dist.config.patterns import check_pattern, matcher, nearest_names
from arrowquant_dist.encodings.raw import RAW
from arrowquant_dist.location import Location
from arrowquant_dist.report import text
from arrowquant_dist.report.text import MISSING, LayerName
from arrowquant_dist.report.view import Table

_DATASETS = ("v1", "v2")


@dataclass(frozen=True, slots=True)
class LayerContents:
    """One layer. params: number of values. source_nbytes: bytes of the decoded values in the layer's dtype. quant_type:
    how a dataset stores the layer; None in checkpoints. stored_nbytes: bytes of everything that the layer is decoded
    from, scales included, in datasets and quantized checkpoints; None where the values are stored as they are.
    encoding: name of the encoding in a quantized checkpoint, for people; else None."""

    layer_name: str
    shape: tuple[int, ...]
    dtype: str
    params: int
    source_nbytes: int
    quant_type: str | None
    stored_nbytes: int | None
    encoding: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape)}


@dataclass(frozen=True, slots=True)
class Contents:
    """All layers at a URI.

    uri: where they are. format: format of the checkpoint (such as `safetensors` or `torch`) or dataset (`v1` or `v2`).
    layers: all layers. aliases: {name: stored name} of tied tensors. shown: the layers to list, in that order; None if
    all are listed.
    """

    uri: str
    format: str
    layers: tuple[LayerContents, ...]
    aliases: dict[str, str]
    shown: tuple[LayerContents, ...] | None = None

    @property
    def listed(self) -> tuple[LayerContents, ...]:
        return self.layers if self.shown is None else self.shown

    @property
    def is_dataset(self) -> bool:
        return self.format in _DATASETS

    @property
    def is_quantized(self) -> bool:
        """Whether the layers are stored in a form from which their values must be decoded."""
        return self.is_dataset or any(layer.encoding is not None for layer in self.layers)

    @property
    def params(self) -> int:
        return sum(layer.params for layer in self.layers)

    @property
    def source_nbytes(self) -> int:
        return sum(layer.source_nbytes for layer in self.layers)

    @property
    def stored_nbytes(self) -> int | None:
        if not self.is_quantized:
            return None
        sizes = ((layer.stored_nbytes, layer.source_nbytes) for layer in self.layers)
        return sum(source if stored is None else stored for stored, source in sizes)

    def to_dict(self) -> dict[str, Any]:
        """The contents as plain values, for `--json`."""
        return {
            "uri": self.uri,
            "format": self.format,
            "totals": {
                "layers": len(self.layers),
                "params": self.params,
                "source_nbytes": self.source_nbytes,
                "stored_nbytes": self.stored_nbytes,
            },
            "aliases": self.aliases,
            "layers": [layer.to_dict() for layer in self.listed],
        }


def read_contents(uri: Location, storage: Storage = DEFAULT_STORAGE) -> Contents:
    """Reads the headers of a checkpoint or the index of a dataset. Raises what `open_checkpoint` and `Dataset.open`
    raise."""
    from arrowquant_dist.checkpoint.open import open_checkpoint

    checkpoint = open_checkpoint(uri, storage)
    stored = _stored(checkpoint.uri, storage) if checkpoint.format in _DATASETS else {}
    layers = []
    for layer in checkpoint.layers:
        quant_type, stored_nbytes = stored.get(layer.name, (None, None))
        own, encoding = layer.encoding, None
        if quant_type is None and own != RAW:
            encoding, stored_nbytes = own.label, layer.nbytes + sum(place.nbytes for place in own.places)
        layers.append(
            LayerContents(
                layer_name=layer.name,
                shape=layer.shape,
                dtype=layer.dtype,
                params=layer.num_params,
                source_nbytes=layer.source_nbytes,
                quant_type=quant_type,
                stored_nbytes=stored_nbytes,
                encoding=encoding,
            )
        )
    return Contents(checkpoint.uri, checkpoint.format, tuple(layers), dict(checkpoint.aliases))


def chosen(contents: Contents, only: tuple[str, ...], sort: str, limit: int | None) -> Contents:
    """`contents` with a choice of layers to list; its totals remain those of all layers.

    only: patterns, of which a layer must match one; all layers are listed if there are none. sort: order of the layers:
    `source`, by `name`, or by `params`, `size` or `stored` with the largest first. limit: largest number of layers.

    Raises InvalidConfig if a pattern is not valid or no layer matches it.
    """
    if not only and sort == "source" and limit is None:
        return contents
    names = [layer.layer_name for layer in contents.layers]
    matched: set[str] = set() if only else {*names}
    for pattern in only:
        check_pattern("filter", pattern)
        found = {*filter(matcher(pattern), names)}
        matched |= found
        if not found:
            near = ", ".join(nearest_names(pattern, names))
            raise invalid(
                "filter", f"{pattern!r} matches no layer" + (f"; did you mean {near}?" if near else "")
            )
    layers = [layer for layer in contents.layers if layer.layer_name in matched]
    if sort == "name":
        layers.sort(key=lambda layer: layer.layer_name)
    elif sort != "source":
        layers.sort(key=lambda layer: -_sizes(layer)[sort])
    return replace(contents, shown=tuple(layers[:limit]))


def _sizes(layer: LayerContents) -> dict[str, int]:
    stored = layer.source_nbytes if layer.stored_nbytes is None else layer.stored_nbytes
    return {"params": layer.params, "size": layer.source_nbytes, "stored": stored}


def _how_many(contents: Contents) -> str:
    listed = contents.listed
    size = text.nbytes(sum(_sizes(layer)["stored"] for layer in listed))
    return f"{len(contents.layers)}, {len(listed)} of them listed ({size})"


def _stored(uri: str, storage: Storage) -> dict[str, tuple[str, int]]:
    from arrowquant_dist.dataset.dataset import Dataset

    dataset = Dataset.open(uri, storage)
    return {name: (layer.quant_type, layer.stored_nbytes) for name, layer in dataset.layers.items()}


def layers_table(contents: Contents) -> Table:
    """A row for each listed layer. For datasets and quantized checkpoints it also has the stored form and size."""
    headers: tuple[str, ...] = ("layer", "dtype", "shape", "params", "size")
    align = "lllrr"
    if contents.is_quantized:
        headers, align = (*headers[:-1], "decoded", "stored as", "stored"), align + "lr"
    rows = tuple(_row(layer, contents) for layer in contents.listed)
    return Table("Layers", headers, align, rows, drop=("params", "decoded", "dtype", "shape", "stored as"))


def _row(layer: LayerContents, contents: Contents) -> tuple[str, ...]:
    row = (
        LayerName(layer.layer_name),
        layer.dtype,
        text.shape(layer.shape),
        text.params(layer.params),
        text.nbytes(layer.source_nbytes),
    )
    if not contents.is_quantized:
        return row
    stored = text.nbytes(layer.source_nbytes if layer.stored_nbytes is None else layer.stored_nbytes)
    return (*row, layer.quant_type or layer.encoding or MISSING, stored)


def totals_table(contents: Contents) -> Table:
    """Totals of all layers, and the tied tensors."""
    rows = [
        ("source", contents.uri),
        ("format", contents.format),
        ("layers", str(len(contents.layers)) if contents.shown is None else _how_many(contents)),
        ("params", text.params(contents.params)),
        ("decoded" if contents.is_quantized else "size", text.nbytes(contents.source_nbytes)),
    ]
    if contents.stored_nbytes is not None:
        rows.append(("stored", text.nbytes(contents.stored_nbytes)))
    rows += [("tied", f"{name} = {stored}") for name, stored in contents.aliases.items()]
    return Table("Totals", ("", ""), "ll", tuple(rows))
