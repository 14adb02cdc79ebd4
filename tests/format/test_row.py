"""A row is defined once: its schema is the format's, and a column is added in the two places where rows are defined and
made."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import arrowquant_dist
from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.format.row import BLOB_NAMES, COLUMNS, HEADER_NAMES, headers_of
from arrowquant_dist.format.schema import V1_SCHEMA, V2_SCHEMA
from arrowquant_dist.target.index import read_index
from tests.format.encoder import SCHEMA, V1_NAMES, kept_row, random_row
from tests.target.targets import make_target

PACKAGE = Path(arrowquant_dist.__file__).parent


def test_the_schemas_are_the_formats() -> None:
    fields = [pa.field(field.name, field.type, nullable=False) for field in SCHEMA]
    assert V2_SCHEMA.equals(pa.schema(fields, SCHEMA.metadata), check_metadata=True)
    v1 = pa.schema([field for field in fields if field.name in V1_NAMES], {"arrowquant.schema_version": "1"})
    assert V1_SCHEMA.equals(v1, check_metadata=True)


def test_each_column_is_a_field_of_the_header_or_a_blob() -> None:
    assert sorted([*HEADER_NAMES, *BLOB_NAMES]) == sorted(column.name for column in COLUMNS)


def test_a_row_of_v1_is_a_whole_layer_that_is_not_quantized() -> None:
    columns: dict[str, list[Any]] = {
        "layer_name": ["w"],
        "shape": [[2, 3]],
        "dtype": ["float32"],
        "num_params": [6],
    }
    [header] = headers_of(columns, 1)
    assert header.is_whole
    assert (header.shape, header.layer_shape, header.row_dims) == ((2, 3), (2, 3), 1)
    assert (header.quant_type, header.quant_axis, header.group_size) == ("none", -1, 0)
    assert (header.row_nbytes, header.scale_count, header.digests_nbytes) == (12, 0, 0)


def test_what_rows_have_in_common_is_one_object() -> None:
    row = random_row(np.random.default_rng(0), "w", 4, 6, "int8").columns
    told = json.loads(json.dumps([{name: row[name] for name in HEADER_NAMES} for _ in range(2)]))
    first, second = headers_of({name: [values[name] for values in told] for name in HEADER_NAMES}, 2)
    assert first.shape is second.shape
    assert first.layer_shape is second.layer_shape
    assert first.quant_type is second.quant_type


# What a maintainer would do to add a column of each kind: {module: [(after this line, these)]}.
NEW_COLUMNS = {
    "format/row.py": [
        (
            '    SmallColumn("checksum", pa.string(), default=""),\n',
            '    SmallColumn("rounding", pa.string(), since=None, default="nearest", repeats=True),\n'
            '    BlobColumn("permutation", pa.binary(), since=None, dtype="<i4"),\n',
        ),
        ("    checksum: str\n", "    rounding: str\n"),
        ("    chunk_digests: T\n", "    permutation: T\n"),
    ],
    "worker/rows.py": [
        ("        num_params=block.num_params,\n", '        rounding="stochastic",\n'),
        (
            "        zero_points=quantized.zero_points,\n",
            "        permutation=np.arange(block.num_params, dtype=np.int32)[::-1],\n",
        ),
    ],
}

WRITE = """
from arrowquant_dist.checkpoint.table import Layer
from arrowquant_dist.config import QuantSpec
from arrowquant_dist.plan import RowBlock
from arrowquant_dist.tensor import QuantizedTensor
from arrowquant_dist.worker.rows import stored_row

block = RowBlock(Layer("w", (2, 3), "float32", "/m/w", 0, 24), QuantSpec("int8"), 0, 2)
codes, scales, none = np.arange(6, dtype=np.uint8), np.ones(2, np.float32), np.empty(0, np.float32)
row = stored_row(block, QuantizedTensor((2, 3), "float32", "int8", codes, scales, none, 0, 0))
with PartWriter(store, PART, compression) as writer:
    writer.add(row, source_nbytes=24, method="rtn", kept_reason=None, errors=None)
    part = writer.close()
receipt = Receipt(0, "a", PART, part.nbytes, part.hash, part.records, {}, 0, "w", "n", 0.0, 0, 0, 0)
assert write_commit(store, receipt, "f", lambda: True)
committed = read_commit(store, commit_path(0), "f").receipt
assert committed == receipt
index = write_index([(PART, 0, record) for record in committed.rows])
store.write("index.parquet", index)
"""

READ = """
[entry] = read_index(store.read("index.parquet"))
block = StoredBlock.from_record(PART, entry.record)
by_range = read_values(lambda part: store.read_range(PART, part), block.ranges, ByteRange(0, 6))
file = BareFile(store, PART, OpenRowGroup())
[bare] = file.blocks
by_parquet = file.read(bare, ReadCounter())
print(json.dumps({
    "index": entry.record.header.rounding,
    "range": by_range.blobs.permutation.tolist(),
    "bare": bare.header.rounding,
    "parquet": by_parquet.blobs.permutation.tolist(),
    "dtypes": [str(values.blobs.permutation.dtype) for values in (by_range, by_parquet)],
    "codes": by_range.blobs.data.tolist(),
    "same": bare.header == entry.record.header,
}))
"""

IMPORTS = """
import json, sys
import numpy as np
from arrowquant_dist.dataset.bare import BareFile, OpenRowGroup, ReadCounter
from arrowquant_dist.dataset.layers import StoredBlock
from arrowquant_dist.dataset.ranges import read_values
from arrowquant_dist.format.parquet.part import PartWriter
from arrowquant_dist.storage.base import ByteRange
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.commit import commit_path, read_commit, write_commit
from arrowquant_dist.target.index import read_index, write_index
from arrowquant_dist.target.receipt import Receipt

_, root, PART, compression = sys.argv
store = open_store(root)
"""


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package whose rows have two more columns."""
    root = tmp_path_factory.mktemp("newer")
    copy = root / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for module, edits in NEW_COLUMNS.items():
        text = (copy / module).read_text()
        for after, lines in edits:
            assert text.count(after) == 1, (module, after)
            text = text.replace(after, after + lines)
        (copy / module).write_text(text)
    return root


def run_newer(newer: Path, code: str, root: Path, part: str, compression: str = "none") -> Any:
    """What the newer package says. It runs beside the copy, so that nothing of this one is imported."""
    command = [sys.executable, "-c", IMPORTS + code, str(root), part, compression]
    env = {**os.environ, "PYTHONPATH": str(newer)}
    done = subprocess.run(command, cwd=newer, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_column_is_added_where_rows_are_defined_and_where_they_are_made(newer: Path) -> None:
    modules = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    same, changed, missing = filecmp.cmpfiles(PACKAGE, newer / PACKAGE.name, modules, shallow=False)
    assert [str(path) for path in changed] == ["format/row.py", "worker/rows.py"]
    assert (len(same), missing) == (len(modules) - 2, [])


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_new_column_is_in_parts_commits_and_the_index(
    newer: Path, tmp_path: Path, compression: str
) -> None:
    part = "weights/part.parquet"
    found = run_newer(newer, WRITE + READ, tmp_path, part, compression)
    assert found == {
        "index": "stochastic",
        "range": [5, 4, 3, 2, 1, 0],
        "bare": "stochastic",
        "parquet": [5, 4, 3, 2, 1, 0],
        "dtypes": ["int32", "int32"],
        "codes": [0, 1, 2, 3, 4, 5],
        "same": True,
    }
    [row] = pq.read_table(tmp_path / part, partitioning=None).to_pylist()
    assert row["rounding"] == "stochastic"
    assert row["permutation"] == np.arange(6, dtype="<i4")[::-1].tobytes()
    # this package, for which those columns do not exist, reads the rest
    [entry] = read_index((tmp_path / "index.parquet").read_bytes())
    assert (entry.record.header.layer_name, entry.record.ranges.data.nbytes) == ("w", 6)
    dataset = Dataset.open(str(tmp_path / part))
    assert dataset.read_block(dataset.layer("w").blocks[0]).codes.tolist() == [0, 1, 2, 3, 4, 5]


def test_datasets_without_a_new_column_have_its_default(newer: Path, tmp_path: Path) -> None:
    make_target(tmp_path, [[kept_row("w", np.arange(6, dtype=np.uint8), "uint8")]])
    [part] = (tmp_path / "weights").rglob("*.parquet")
    found = run_newer(newer, READ, tmp_path, str(part.relative_to(tmp_path)))
    assert (found["index"], found["bare"], found["same"]) == ("nearest", "nearest", True)
    assert (found["range"], found["parquet"]) == ([], [])
    assert found["codes"] == [0, 1, 2, 3, 4, 5]
