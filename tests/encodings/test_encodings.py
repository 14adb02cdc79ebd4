"""Ways of storing weights are values of types of their own, which plans record and readers follow."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.arena import Allocate
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint, Layer, SourceFile
from arrowquant_dist.columns import arrow_batch
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.encodings import columns
from arrowquant_dist.encodings.columns import (
    describe,
    encoding_columns,
    encoding_fields,
    read_encodings,
)
from arrowquant_dist.encodings.encoding import (
    Encoding,
    Source,
    SourceRange,
    Stored,
)
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.registry import ENCODINGS
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.plan import make_plan
from arrowquant_dist.plan.rows import BLOCK_SCHEMA
from arrowquant_dist.storage.uris import redact
from tests.plan import every_kind
from tests.plan.plan_bytes import read_again, written
from tests.plan.plan_sources import ENCODINGS as ANY_ENCODING


def as_batch(encodings: Sequence[Encoding]) -> pa.RecordBatch:
    names = encoding_fields({type(encoding) for encoding in encodings})
    batch = arrow_batch(encoding_columns(encodings, names, redact), pa.schema(names))
    batch.validate(full=True)
    return batch


@pytest.mark.parametrize("kind", ENCODINGS.values())
def test_an_encoding_is_frozen_and_has_its_fields_alone(kind: type[Encoding]) -> None:
    encoding = next(x.encoding for x in every_kind.EVERY if type(x.encoding) is kind)
    assert not hasattr(encoding, "__dict__")
    assert hash(encoding) == hash(pickle.loads(pickle.dumps(encoding)))  # noqa: S301 - ours
    assert is_dataclass(encoding)
    for field in fields(encoding):
        with pytest.raises(FrozenInstanceError):
            setattr(encoding, field.name, None)


def test_every_kind_has_a_name_of_its_own_that_no_column_of_a_plan_has() -> None:
    assert [kind.kind for kind in ENCODINGS.values()] == list(ENCODINGS)
    assert not ENCODINGS.keys() & {*BLOCK_SCHEMA.names, "encoding"}


@settings(max_examples=200)
@given(st.lists(ANY_ENCODING, max_size=20))
def test_encodings_come_back_from_their_columns_and_equal_ones_are_one_object(
    encodings: list[Encoding],
) -> None:
    found = read_encodings(as_batch(encodings * 2))
    assert found == encodings * 2
    assert [id(x) for x in found[: len(encodings)]] == [id(x) for x in found[len(encodings) :]]


@settings(max_examples=200)
@given(ANY_ENCODING, ANY_ENCODING)
def test_encodings_are_described_alike_where_they_are_equal_alone(one: Encoding, other: Encoding) -> None:
    assert (describe(one, redact) == describe(other, redact)) == (one == other)


def test_columns_and_descriptions_show_no_credentials() -> None:
    layer = next(x for x in every_kind.LAYERS if x.encoding == every_kind.ELSEWHERE)
    scales = replace(every_kind.ELSEWHERE.scales, uri="s3://key:hunter2@bucket/model/b.bin?sig=hunter2")
    secret = replace(every_kind.ELSEWHERE, scales=scales)
    assert describe(secret, redact) == describe(layer.encoding, redact)
    assert read_encodings(as_batch([secret])) == [layer.encoding]


@pytest.mark.parametrize("layer", every_kind.EVERY[1:], ids=lambda layer: layer.name)
def test_bytes_beyond_their_file_are_refused_before_a_weight_is_read(layer: Layer) -> None:
    beyond = replace(layer, offset=1_000_000)
    with pytest.raises(InvalidCheckpoint, match=f"layer '{layer.name}'.*outside the file"):
        make_plan(replace(every_kind.NOW, layers=(beyond,), aliases={}), every_kind.CONFIG, every_kind.RUN)


def test_scales_beyond_their_file_are_refused_and_the_file_is_named() -> None:
    layer = next(x for x in every_kind.LAYERS if x.encoding == every_kind.ELSEWHERE)
    files = tuple(replace(x, nbytes=50_599) if x.uri == every_kind.B else x for x in every_kind.SOURCE.files)
    source = replace(every_kind.SOURCE, layers=(layer,), files=files, aliases={})
    with pytest.raises(InvalidCheckpoint, match=r"50000 to 50600 are outside the file \(50599") as error:
        make_plan(source, every_kind.CONFIG, every_kind.RUN)
    assert (error.value.layer, error.value.uri) == (layer.name, every_kind.B)


@dataclass(frozen=True, slots=True)
class Halved(Encoding):
    """A made-up one: int8 codes, a float32 scale for each row, twice the value."""

    factor: int
    scales: Place
    kind: ClassVar[str] = "halved"
    may_be_a_copy: ClassVar[bool] = False

    @property
    def label(self) -> str:
        return "halved codes"

    @property
    def places(self) -> tuple[Place, ...]:
        return (self.scales,)

    def slice(self, layer: Stored, start: int, stop: int) -> HalvedSlice:
        return HalvedSlice(self, layer, range(start, stop))


@dataclass(frozen=True, slots=True)
class HalvedSlice:
    encoding: Halved
    layer: Stored
    span: range
    beside_nbytes: ClassVar[int] = 0

    @property
    def ranges(self) -> list[SourceRange]:
        layer, scales = self.layer, self.encoding.scales
        codes = SourceRange(layer.uri, layer.offset + self.span.start, layer.offset + self.span.stop, 1)
        return [codes, SourceRange(scales.uri, scales.offset, scales.offset + scales.nbytes, 4)]

    @property
    def decoded_nbytes(self) -> int:
        return 4 * len(self.span)

    def values(self, found: Sequence[np.ndarray], _source: Source, allocate: Allocate) -> np.ndarray:
        codes, scales = found[0].view(np.int8), found[1].view(np.float32)
        out = allocate(self.decoded_nbytes)
        rows = np.arange(self.span.start, self.span.stop) // self.layer.shape[1]
        out.view(np.float32)[:] = self.encoding.factor * codes * scales[rows]
        return out


def test_a_new_way_of_storing_is_a_type_and_its_line_in_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked, planned, written to a table, read from it, and its values from the file: without another change."""
    monkeypatch.setattr(columns, "ENCODINGS", {**ENCODINGS, Halved.kind: Halved})
    codes, scales = np.arange(-6, 6, dtype=np.int8), np.array([0.5, 2, 4], np.float32)
    path = tmp_path / "m.bin"
    path.write_bytes(codes.tobytes() + scales.tobytes())
    encoding = Halved(2, Place(str(path), 12, "float32", (3,)))
    layer = Layer("w", (3, 4), "float32", str(path), 0, 12, encoding)
    source = Checkpoint(str(tmp_path), "torch", (layer,), (SourceFile(str(path), 24, "v1"),))
    plan = read_again(written(make_plan(source, QuantizationConfig(), RunConfig())))
    (block,) = plan.blocks
    assert block.layer == layer
    with SourceReader() as reader:
        whole, middle = reader.read([(block.layer, 0, 12), (block.layer, 3, 9)])
    expected = 2 * codes.reshape(3, 4) * scales[:, None]
    assert np.array_equal(whole.view(np.float32), expected.reshape(-1))
    assert np.array_equal(middle.view(np.float32), expected.reshape(-1)[3:9])
