"""Datasets written by another program are read, and those that contradict themselves are refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.errors import CorruptWeights, IncompleteDataset, InvalidConfig, NotFound, UnknownLayer
from tests.format.encoder import Row, kept_row, quantized_row, random_row, signed, write_v1, write_v2

RNG = np.random.default_rng(7)


def blocks_of(
    name: str, quant_type: str, lengths: Sequence[int], columns: int, **how: Any
) -> tuple[list[Row], np.ndarray]:
    """A layer in blocks of `lengths` rows, and its decoded values [rows, columns]."""
    rows, start, layer_shape = [], 0, [sum(lengths), columns]
    for length in lengths:
        row = random_row(
            RNG, name, length, columns, quant_type, layer_shape=layer_shape, row_start=start, **how
        )
        rows.append(row)
        start += length
    return rows, np.concatenate([row.decoded for row in rows])


def whole(dataset: Dataset, name: str) -> np.ndarray:
    layer = dataset.layer(name)
    parts = [tensor.values().reshape(-1) for tensor in dataset.read_rows(name, 0, layer.rows)]
    return np.concatenate(parts).reshape(layer.shape)


LAYOUTS = [
    pytest.param(
        quant_type,
        columns,
        {"group_size": group_size, "symmetric": symmetric, "per_tensor": per_tensor},
        id=f"{quant_type}-{label}",
    )
    for quant_type in ("int8", "int4", "int3", "int2")
    for label, columns, group_size, symmetric, per_tensor in (
        ("channel", 13, 0, True, False),
        ("ragged-groups", 13, 4, True, False),
        ("ragged-groups-asymmetric", 13, 4, False, False),
        ("group-past-the-row", 5, 64, False, False),
        ("tensor", 7, 0, True, True),
        ("tensor-asymmetric", 7, 0, False, True),
        ("one-column", 1, 128, False, False),
    )
]


@pytest.mark.parametrize(("quant_type", "columns", "layout"), LAYOUTS)
def test_every_layout_decodes_by_the_formula(
    tmp_path: Path, quant_type: str, columns: int, layout: dict[str, Any]
) -> None:
    row = random_row(RNG, "w", 6, columns, quant_type, **layout)
    dataset = Dataset.open(str(write_v2(tmp_path / "w.parquet", [row])))
    np.testing.assert_allclose(whole(dataset, "w"), row.decoded, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array(3.5, "<f4"), "float32"),
        (np.arange(7, dtype="<f4"), "float32"),
        (np.zeros((0, 4), "<f4"), "float32"),
        (np.zeros((4, 0), "<f4"), "float32"),
        (np.arange(24, dtype="<f8").reshape(2, 3, 4), "float64"),
        (np.arange(6, dtype="<u2").reshape(2, 3), "bfloat16"),
        (np.arange(6, dtype="u1").reshape(2, 3), "float8_e4m3fn"),
        (np.array([[1, -(2**63)]], "<i8"), "int64"),
        (np.array([True, False]), "bool"),
    ],
    ids=lambda value: f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else None,
)
def test_kept_layers_come_back_bit_for_bit(tmp_path: Path, values: np.ndarray, dtype: str) -> None:
    dataset = Dataset.open(str(write_v2(tmp_path / "w.parquet", [kept_row("w", values, dtype)])))
    assert dataset.layer("w").shape == values.shape
    assert whole(dataset, "w").tobytes() == values.tobytes()


def test_layers_kept_as_fp16_have_the_dtype_of_the_source(tmp_path: Path) -> None:
    values = np.array([[1.5, 2.25, -0.125]], "<f4")
    dataset = Dataset.open(
        str(write_v2(tmp_path / "w.parquet", [kept_row("w", values, "float32", as_fp16=True)]))
    )
    assert whole(dataset, "w").dtype == np.dtype("<f4")
    assert whole(dataset, "w").tobytes() == values.tobytes()


@pytest.mark.parametrize("version", [None, {"arrowquant.schema_version": "1"}])
@pytest.mark.parametrize("row_group_size", [1, 2, 100])
@pytest.mark.parametrize("dtype", ["float32", "torch.float32"])
def test_a_v1_file_is_read_with_or_without_its_version(
    tmp_path: Path, version: dict[str, str] | None, row_group_size: int, dtype: str
) -> None:
    arrays = {
        f"layer{i}": np.full((2, 3), i % 2, "<f4") for i in range(5)
    }  # equal ones share a dictionary entry
    rows = [kept_row(name, values, dtype) for name, values in arrays.items()]
    dataset = Dataset.open(
        str(write_v1(tmp_path / "v1.parquet", rows, version, row_group_size=row_group_size))
    )
    assert dataset.schema_version == "1"
    assert list(dataset.layers) == list(arrays)
    for name, values in arrays.items():
        assert whole(dataset, name).tobytes() == values.tobytes()


def test_a_folder_of_files_is_one_dataset(tmp_path: Path) -> None:
    rows, values = blocks_of("w", "int4", [3, 1, 2], 9, group_size=4)
    for i, row in enumerate(reversed(rows)):
        write_v2(tmp_path / "weights" / f"shard={i:05}" / "part.parquet", [row])
    (tmp_path / "weights" / "_SUCCESS").write_bytes(b"")
    for uri in (tmp_path, tmp_path / "weights"):
        dataset = Dataset.open(str(uri))
        np.testing.assert_allclose(whole(dataset, "w"), values, rtol=1e-6)
        assert [block.header.row_start for block in dataset.layers["w"].blocks] == [0, 3, 4]


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for uri in (tmp_path / "empty", tmp_path / "nothing", tmp_path / "no.parquet"):
        with pytest.raises(NotFound, match=uri.name):
            Dataset.open(str(uri))


def test_an_unfinished_target_is_incomplete(tmp_path: Path) -> None:
    write_v2(tmp_path / "weights/shard=00000/part.parquet", [random_row(RNG, "w", 2, 2, "int8")])
    (tmp_path / "run").mkdir()
    (tmp_path / "run/plan.arrow").write_bytes(b"a plan")
    with pytest.raises(IncompleteDataset, match="same quantize command"):
        Dataset.open(str(tmp_path))


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    rows = [random_row(RNG, f"layer.{i}.q_proj.weight", 1, 2, "int8") for i in range(5)]
    dataset = Dataset.open(str(write_v2(tmp_path / "w.parquet", rows)))
    with pytest.raises(UnknownLayer, match=r"did you mean .*layer\.1\.q_proj\.weight") as caught:
        dataset.layer("layer.1.q_prog.weight")
    assert str(caught.value).count("q_proj") == 3
    assert isinstance(caught.value, KeyError)


@settings(max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("quant_type", ["int8", "int3", "none"])
def test_rows_are_the_slice_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, quant_type: str, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    columns = data.draw(st.integers(1, 11))
    group_size = data.draw(st.sampled_from([0, 3, 8]))
    path = tmp_path_factory.mktemp("rows") / "w.parquet"
    if quant_type == "none":
        values = np.arange(sum(lengths) * columns, dtype="<f4").reshape(-1, columns)
        edges = np.cumsum([0, *lengths])
        rows = [
            kept_row("w", values[a:b], "float32", layer_shape=list(values.shape), row_start=int(a))
            for a, b in pairwise(edges)
        ]
    else:
        rows, _ = blocks_of("w", quant_type, lengths, columns, group_size=group_size, symmetric=False)
    dataset = Dataset.open(str(write_v2(path, rows, row_group_size=data.draw(st.integers(1, 3)))))
    total = sum(lengths)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    expected = whole(dataset, "w")
    parts = [tensor.values() for tensor in dataset.read_rows("w", start, stop)]
    assert sum(len(part) for part in parts) == stop - start
    if parts:
        assert np.concatenate(parts).tobytes() == expected[start:stop].tobytes()
    first = data.draw(st.integers(0, total * columns))
    last = data.draw(st.integers(first, total * columns))
    assert dataset.read_values("w", first, last).tobytes() == expected.reshape(-1)[first:last].tobytes()


def test_blocks_of_fused_experts_are_rows_of_experts_times_outputs(tmp_path: Path) -> None:
    layer: dict[str, Any] = {"layer_shape": [2, 3, 4], "row_dims": 2}
    halves = [
        random_row(RNG, "experts.w", rows, 4, "int4", group_size=2, row_start=start, **layer)
        for start, rows in ((0, 4), (4, 2))
    ]
    dataset = Dataset.open(str(write_v2(tmp_path / "w.parquet", halves)))
    expected = np.concatenate([half.decoded for half in halves])
    np.testing.assert_allclose(whole(dataset, "experts.w"), expected.reshape(2, 3, 4), rtol=1e-6)
    [a, b] = dataset.read_rows("experts.w", 3, 5)
    assert (a.shape, b.shape) == ((1, 4), (1, 4))
    np.testing.assert_allclose(np.concatenate([a.values(), b.values()]), expected[3:5], rtol=1e-6)


def test_a_whole_layer_of_fused_experts_has_its_own_shape(tmp_path: Path) -> None:
    row = random_row(
        RNG, "experts.w", 6, 4, "int4", group_size=2, shape=(2, 3, 4), layer_shape=[2, 3, 4], row_dims=2
    )
    dataset = Dataset.open(str(write_v2(tmp_path / "w.parquet", [row])))
    np.testing.assert_allclose(whole(dataset, "experts.w"), row.decoded, rtol=1e-6)
    assert dataset.layer("experts.w").rows == 6


def test_rows_beyond_the_layer_are_refused(tmp_path: Path) -> None:
    dataset = Dataset.open(str(write_v2(tmp_path / "w.parquet", [random_row(RNG, "w", 3, 2, "int8")])))
    for start, stop in ((-1, 2), (0, 4), (2, 1)):
        with pytest.raises(InvalidConfig):
            dataset.read_rows("w", start, stop)


def test_results_are_memory_of_their_own(tmp_path: Path) -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    rows = [kept_row(name, values, "float32") for name in ("a", "b")]
    dataset = Dataset.open(str(write_v2(tmp_path / "w.parquet", rows, row_group_size=2)))
    [first] = dataset.read_rows("a", 0, 2)
    first.codes[:] = 0
    [again] = dataset.read_rows("a", 0, 2)
    assert again.values().tobytes() == values.tobytes()


def a_row() -> Row:
    return random_row(np.random.default_rng(1), "w", 4, 6, "int4", group_size=4, symmetric=False)


def resigned(row: Row, **columns: Any) -> Row:
    """The row with other columns and a checksum that agrees: only a check of the content can find it."""
    return row.but(**signed({**row.columns, **columns}))


CONTRADICTIONS: dict[str, Callable[[Row], list[Row]]] = {
    "num_params": lambda row: [row.but(num_params=23)],
    "shape": lambda row: [row.but(shape=[4, 7])],
    "negative shape": lambda row: [row.but(shape=[-4, -6], layer_shape=[-4, -6])],
    "enormous shape": lambda row: [
        row.but(shape=[2**31 - 1] * 2, layer_shape=[2**31 - 1] * 2, num_params=(2**31 - 1) ** 2)
    ],
    "overflowing shape": lambda row: [row.but(layer_shape=[2**62, 2**62])],
    "data too long": lambda row: [resigned(row, data=row.columns["data"] + b"\0")],
    "data too short": lambda row: [resigned(row, data=row.columns["data"][:-1])],
    "scales too short": lambda row: [resigned(row, scales=row.columns["scales"][:-4])],
    "scales are no float32": lambda row: [resigned(row, scales=row.columns["scales"][:-1])],
    "zero_points too short": lambda row: [resigned(row, zero_points=row.columns["zero_points"][:-4])],
    "nan scale": lambda row: [resigned(row, scales=b"\0\0\xc0\x7f" + row.columns["scales"][4:])],
    "inf zero_point": lambda row: [
        resigned(row, zero_points=b"\0\0\x80\x7f" + row.columns["zero_points"][4:])
    ],
    "digests too short": lambda row: [row.but(chunk_digests=b"")],
    "dtype": lambda row: [row.but(dtype="float12")],
    "quantized integers": lambda row: [row.but(dtype="int64")],
    "quant_type": lambda row: [row.but(quant_type="int5")],
    "row_dims": lambda row: [row.but(row_dims=3)],
    "quant_axis": lambda row: [row.but(quant_axis=1)],
    "group per tensor": lambda row: [row.but(quant_axis=-1)],
    "row_start": lambda row: [row.but(row_start=-1)],
    "past the layer": lambda row: [row.but(row_start=1)],
    "other columns": lambda row: [row.but(layer_shape=[8, 5])],
    "twice": lambda row: [row, row],
    "overlap": lambda row: [row.but(layer_shape=[6, 6]), row.but(layer_shape=[6, 6], row_start=2)],
    "other dtype": lambda row: [
        row.but(layer_shape=[8, 6]),
        row.but(layer_shape=[8, 6], row_start=4, dtype="float16"),
    ],
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
@pytest.mark.parametrize("row_group_size", [1, 2])
def test_contradictions_are_corrupt_and_name_layer_and_object(
    tmp_path: Path, what: str, row_group_size: int
) -> None:
    path = write_v2(tmp_path / "bad.parquet", CONTRADICTIONS[what](a_row()), row_group_size=row_group_size)
    with pytest.raises(CorruptWeights) as caught:
        whole(Dataset.open(str(path)), "w")
    assert caught.value.layer == "w"
    assert str(caught.value.uri).endswith("bad.parquet")


@pytest.mark.parametrize(
    ("kept", "missing"),
    [((1, 2), "rows 0-3"), ((0, 2), "rows 3-4"), ((0, 1), "rows 4-6"), ((1,), "rows 0-3")],
)
def test_missing_blocks_are_incomplete_and_name_the_rows(
    tmp_path: Path, kept: Sequence[int], missing: str
) -> None:
    rows, _ = blocks_of("w", "int8", [3, 1, 2], 5)
    path = write_v2(tmp_path / "w.parquet", [rows[i] for i in kept])
    with pytest.raises(IncompleteDataset, match=missing) as caught:
        Dataset.open(str(path))
    assert caught.value.layer == "w"


def test_a_changed_value_is_found_with_its_byte_range(tmp_path: Path) -> None:
    row = a_row()
    path = write_v2(tmp_path / "w.parquet", [row], write_page_checksum=False)
    content = bytearray(path.read_bytes())
    for column in ("data", "scales", "zero_points", "chunk_digests"):
        place = content.index(row.columns[column])
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(CorruptWeights) as caught:
            whole(Dataset.open(str(path)), "w")
        assert caught.value.layer == "w"
        if column == "data":
            assert caught.value.byte_range is not None
            assert caught.value.byte_range[0] <= place < caught.value.byte_range[1]
        content[place] ^= 1


def test_a_changed_value_is_read_only_by_who_asks_for_it(tmp_path: Path) -> None:
    row = a_row()
    path = write_v2(tmp_path / "w.parquet", [row.but(data=bytes(12))], write_page_checksum=False)
    dataset = Dataset.open(str(path))
    [tensor] = dataset.read_rows("w", 0, 4, verify=False)
    assert not tensor.codes.any()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_page_checksums_protect_what_has_no_own(tmp_path: Path, version: str) -> None:
    row = kept_row("w", np.arange(64, dtype="<f4").reshape(8, 8), "float32")
    path = tmp_path / "w.parquet"
    if version == "v1":
        plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        write_v1(path, [row], write_page_checksum=True, **plain)
    else:
        write_v2(path, [row])
    content = bytearray(path.read_bytes())
    content[content.index(row.columns["data"]) + 9] ^= 16
    path.write_bytes(content)
    with pytest.raises(CorruptWeights, match=r"w\.parquet"):
        whole(Dataset.open(str(path)), "w")


BAD_TABLES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "no data": lambda table: table.drop_columns(["data"]),
    "no checksum": lambda table: table.drop_columns(["checksum"]),
    "data is text": lambda table: table.set_column(3, "data", pa.array(["text"])),
    "shape is text": lambda table: table.set_column(1, "shape", pa.array(["[4, 6]"])),
    "a null name": lambda table: table.set_column(0, "layer_name", pa.array([None], pa.string())),
    "a null dimension": lambda table: table.set_column(
        1, "shape", pa.array([[4, None]], pa.list_(pa.int32()))
    ),
    "version 3": lambda table: table.replace_schema_metadata({"arrowquant.schema_version": "3"}),
}


@pytest.mark.parametrize("what", BAD_TABLES)
def test_a_file_that_is_neither_v1_nor_v2_is_refused(tmp_path: Path, what: str) -> None:
    path = write_v2(tmp_path / "bad.parquet", [a_row()])
    pq.write_table(BAD_TABLES[what](pq.read_table(path)), path)
    with pytest.raises(CorruptWeights, match=r"bad\.parquet"):
        Dataset.open(str(path))


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, cut: int) -> None:
    path = write_v2(tmp_path / "cut.parquet", [a_row()])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CorruptWeights, match=r"cut\.parquet"):
        Dataset.open(str(path))


def test_other_writers_types_are_read(tmp_path: Path) -> None:
    rows = [kept_row(f"l{i}", np.arange(6, dtype="<f4").reshape(2, 3) + i, "float32") for i in range(3)]
    path = write_v1(tmp_path / "v1.parquet", rows)
    table = pq.read_table(path)
    types = [
        pa.large_string(),
        pa.large_list(pa.int64()),
        pa.dictionary(pa.int32(), pa.string()),
        pa.binary(),
        pa.int32(),
    ]
    columns = [column.cast(kind) for column, kind in zip(table.columns, types, strict=True)]
    pq.write_table(pa.table(columns, names=table.column_names), path)
    dataset = Dataset.open(str(path))
    for row in rows:
        assert whole(dataset, row.name).tobytes() == row.columns["data"]


def test_memory_is_not_taken_for_a_shape_that_the_file_cannot_fill(tmp_path: Path) -> None:
    side = 2**20
    row = a_row().but(shape=[side, side], layer_shape=[side, side], num_params=side * side)
    path = write_v2(tmp_path / "w.parquet", [row, random_row(RNG, "other", 2, 2, "int8")], row_group_size=2)
    with pytest.raises(CorruptWeights, match="data has at most"):
        Dataset.open(str(path))


def test_quantized_values_survive_a_second_decoding_to_raw_bytes(tmp_path: Path) -> None:
    codes = np.array([[-2, 1, 0], [1, 1, -1]])
    scales = np.array([[0.5], [2.0]], "<f4")
    row = quantized_row("w", codes, scales, None, quant_type="int2", group_size=0, dtype="bfloat16")
    dataset = Dataset.open(str(write_v2(tmp_path / "w.parquet", [row])))
    raw = dataset.read_values("w", 1, 5)
    assert raw.dtype == np.uint8
    expected = row.decoded.reshape(-1)[1:5].astype("<f4").view("<u4") >> 16
    assert raw.tobytes() == expected.astype("<u2").tobytes()
    assert dataset.read_values("w", 3, 3).size == 0
    assert math.prod(dataset.layer("w").shape) == 6
