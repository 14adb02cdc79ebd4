"""The figures of all layers in the form that pages and pictures use, from a run or read back from layers.parquet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from arrowquant_dist.config import DEFAULT_STORAGE, SOURCE, Storage
from arrowquant_dist.errors import InvalidCheckpoint, NotFound
from arrowquant_dist.location import Location, location
from arrowquant_dist.reduce.figures import is_measured
from arrowquant_dist.reduce.layers import LayerMetrics, stores_codes
from arrowquant_dist.reduce.ratios import finite
from arrowquant_dist.report.layers import LAYERS_SCHEMA
from arrowquant_dist.report.named_file import WRITE_AGAIN, named_file, read_named
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.manifest import Manifest

if TYPE_CHECKING:
    import pyarrow as pa

LAYERS_PATH = "report/layers.parquet"


@dataclass(frozen=True, slots=True)
class LayerRow:
    """The figures of one layer, which are columns of layers.parquet. cosine, mse, max_error: None if they were not
    measured. sqnr_db: None if it was not measured or nothing was lost."""

    layer_name: str
    layer_type: str
    shape: tuple[int, ...]
    dtype: str
    quant_type: str
    method: str
    quant_axis: int
    group_size: int
    params: int
    source_nbytes: int
    stored_nbytes: int
    kept_reason: str | None
    cosine: float | None
    mse: float | None
    sqnr_db: float | None
    max_error: float | None

    @property
    def is_quantized(self) -> bool:
        return stores_codes(self.quant_type)

    @property
    def keeps_codes(self) -> bool:
        """Whether the layer has the codes of its source, so that its error is not known."""
        return self.method == SOURCE

    @property
    def noise_db(self) -> float | None:
        """The SQNR of a quantized layer; None if it has the codes of its source, or nothing was lost."""
        return self.sqnr_db if self.is_quantized and not self.keeps_codes else None

    @property
    def stored_bits(self) -> float | None:
        """Stored bits per value, scales included; None for an empty layer."""
        return 8 * self.stored_nbytes / self.params if self.params else None

    @property
    def groups(self) -> str:
        """What shares a scale: `groups of 128`, `rows` or `the layer`; empty for a layer that is not quantized."""
        if not self.is_quantized:
            return ""
        if self.group_size:
            return f"groups of {self.group_size}"
        return "rows" if self.quant_axis == 0 else "the layer"


def measured_rows(layers: Sequence[LayerMetrics]) -> tuple[LayerRow, ...]:
    """The rows of the layers of a run that has just finished."""
    return tuple(_row(layer) for layer in layers)


def _row(layer: LayerMetrics) -> LayerRow:
    errors = layer.errors if layer.errors is not None and is_measured(layer.errors) else None
    return LayerRow(
        layer_name=layer.layer_name,
        layer_type=layer.layer_type,
        shape=layer.shape,
        dtype=layer.dtype,
        quant_type=layer.quant_type,
        method=layer.method,
        quant_axis=layer.quant_axis,
        group_size=layer.group_size,
        params=layer.params,
        source_nbytes=layer.source_nbytes,
        stored_nbytes=layer.stored_nbytes,
        kept_reason=layer.kept_reason,
        cosine=finite(errors.cosine) if errors is not None else None,
        mse=finite(errors.mse) if errors is not None else None,
        sqnr_db=finite(errors.sqnr_db) if errors is not None else None,
        max_error=finite(errors.max_error) if errors is not None else None,
    )


def load_layer_rows(uri: Location, storage: Storage = DEFAULT_STORAGE) -> tuple[LayerRow, ...] | None:
    """The rows of the finished dataset at `uri`, or of a copy of some of its files; None if layers.parquet is missing.
    Raises InvalidCheckpoint if it is damaged or is not the one that the manifest names."""
    store = open_store(location(uri, "uri"), storage)
    return layer_rows_at(store, _manifest(store))


def layer_rows_at(store: Store, manifest: Manifest | None) -> tuple[LayerRow, ...] | None:
    """As `load_layer_rows`, for the dataset at `store`. manifest: its manifest; None for a copy without one."""
    content = layers_at(store, manifest)
    if content is None:
        return None
    try:
        return parsed_rows(content)
    except InvalidCheckpoint as error:
        raise InvalidCheckpoint(error.message, uri=store.url(LAYERS_PATH)) from error


def load_layers(uri: Location, storage: Storage = DEFAULT_STORAGE) -> bytes | None:
    """The bytes of the layers.parquet of the dataset at `uri`; None if it is missing. Raises InvalidCheckpoint if it is
    not the one that the manifest names."""
    store = open_store(location(uri, "uri"), storage)
    return layers_at(store, _manifest(store))


def layers_at(store: Store, manifest: Manifest | None) -> bytes | None:
    """As `load_layers`, for the dataset at `store`. manifest: its manifest; None for a copy without one."""
    said = named_file(manifest, LAYERS_PATH) if manifest is not None else None
    try:
        return read_named(store, said.path if said is not None else LAYERS_PATH, said, "layers")
    except NotFound:
        return None


def _manifest(store: Store) -> Manifest | None:
    try:
        return Manifest.read(store)
    except NotFound:
        return None


def parsed_rows(content: bytes) -> tuple[LayerRow, ...]:
    """The rows in the bytes of layers.parquet. Raises InvalidCheckpoint if they are damaged."""
    columns: dict[str, list[Any]] = parsed_layers(content, _names()).to_pydict()
    columns["shape"] = list(map(tuple, columns["shape"]))
    return tuple(LayerRow(*values) for values in zip(*columns.values(), strict=True))


def parsed_layers(content: bytes, names: Sequence[str] = tuple(LAYERS_SCHEMA.names)) -> pa.Table:
    """The columns `names` in the bytes of layers.parquet. Raises InvalidCheckpoint if they are damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(content), columns=list(names))
        return table.select(names).cast(pa.schema([LAYERS_SCHEMA.field(name) for name in names]))
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        message = f"the layers are damaged ({type(error).__name__}: {str(error)[:200]}); {WRITE_AGAIN}"
        raise InvalidCheckpoint(message) from error


@cache
def _names() -> list[str]:
    return [field.name for field in fields(LayerRow)]
