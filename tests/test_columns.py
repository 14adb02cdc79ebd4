"""Arrow arrays made from buffers equal those that pyarrow makes of the same values."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.columns import arrow_array, arrow_batch, python_values

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_KINDS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int32(): st.integers(-(1 << 31), (1 << 31) - 1),
    pa.int64(): st.integers(-(1 << 63), (1 << 63) - 1),
    pa.uint8(): st.integers(0, 255),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.bool_(): st.booleans(),
    pa.string(): _TEXT,
    pa.large_string(): _TEXT,
    pa.binary(): st.binary(max_size=5),
    pa.large_binary(): st.binary(max_size=5),
    pa.list_(pa.int64()): st.lists(st.integers(-9, 9), max_size=4),
    pa.list_(pa.string()): st.lists(_TEXT, max_size=3),
}
_PLACE = pa.struct([("uri", pa.string()), ("shape", pa.list_(pa.int64()))])
_STRUCT = pa.struct([("bits", pa.int64()), ("scales", _PLACE)])
_PLACES = st.tuples(_TEXT, st.lists(st.integers(-9, 9), max_size=3))


@pytest.mark.parametrize("dtype", _KINDS, ids=str)
@settings(max_examples=50)
@given(data=st.data())
def test_an_array_equals_pyarrows(dtype: pa.DataType, data: st.DataObject) -> None:
    values = data.draw(st.lists(_KINDS[dtype] | st.none(), max_size=20))
    array = arrow_array(values, dtype)
    array.validate(full=True)
    assert array.equals(pa.array(values, dtype))
    assert array.null_count == values.count(None)


@settings(max_examples=50)
@given(values=st.lists(st.none() | st.tuples(st.integers(-9, 9), st.none() | _PLACES), max_size=20))
def test_a_tuple_is_a_struct_as_pyarrow_makes_it_of_a_dict(values: list[tuple[Any, ...] | None]) -> None:
    def named(place: tuple[Any, ...] | None) -> dict[str, Any] | None:
        return None if place is None else {"uri": place[0], "shape": place[1]}

    array = arrow_array(values, _STRUCT)
    array.validate(full=True)
    dicts = [None if value is None else {"bits": value[0], "scales": named(value[1])} for value in values]
    assert array.equals(pa.array(dicts, _STRUCT))


def test_texts_that_are_the_same_come_back_as_one_object() -> None:
    first, nothing, second = python_values(pa.array(["é" * 99, None, "é" * 99]))
    assert (first, nothing) == ("é" * 99, None)
    assert first is second


def test_a_number_beyond_its_type_is_an_error() -> None:
    with pytest.raises(OverflowError):
        arrow_array([1 << 31], pa.int32())


def test_a_batch_has_its_schema_and_its_metadata() -> None:
    schema = pa.schema([("a", pa.int64()), ("b", pa.string())], {"key": "value"})
    batch = arrow_batch([(1, 2), ("x", None)], schema)
    assert batch.schema.equals(schema, check_metadata=True)
    assert batch.to_pylist() == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]


def test_no_table_of_ours_imports_pandas() -> None:
    program = (
        "import sys, pyarrow as pa; from arrowquant_dist.columns import arrow_array as a;"
        "a([1], pa.int64()); a(['x', None], pa.string()); a([[1]], pa.list_(pa.int64()));"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
