"""V1 and V2 datasets as sources: names and shapes are known at once, and decoded values when they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arrowquant_dist import ArrowQuantizer, QuantizationConfig
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.errors import InvalidCheckpoint, NotFound
from tests.checkpoint.checkpoint_files import read_all
from tests.format.encoder import kept_row, random_row, write_v1, write_v2
from tests.target.targets import make_target

pytestmark = pytest.mark.usefixtures("ticks")
RNG = np.random.default_rng(11)


def test_a_v1_file_is_a_checkpoint_of_raw_values(tmp_path: Path) -> None:
    values = {"w": np.arange(12, dtype="<f4").reshape(3, 4), "ids": np.arange(5), "scalar": np.array(2.5)}
    dtypes = {"w": "float32", "ids": "int64", "scalar": "float64"}
    path = write_v1(tmp_path / "m.parquet", [kept_row(n, v, dtypes[n]) for n, v in values.items()])
    checkpoint = open_checkpoint(str(path))
    assert checkpoint.format == "v1"
    assert {x.name: (x.dtype, x.shape) for x in checkpoint.layers} == {
        n: (dtypes[n], v.shape) for n, v in values.items()
    }
    assert read_all(checkpoint) == {name: value.tobytes() for name, value in values.items()}


def test_a_v2_file_is_decoded_to_the_source_s_dtype(tmp_path: Path) -> None:
    row = random_row(RNG, "w", 6, 9, "int4", group_size=4, symmetric=False)
    path = write_v2(tmp_path / "m.parquet", [row])
    checkpoint = open_checkpoint(str(path))
    assert checkpoint.format == "v2"
    layer = checkpoint.layers[0]
    assert (layer.name, layer.shape, layer.dtype, layer.source_nbytes) == ("w", (6, 9), "float32", 216)
    with SourceReader(files=checkpoint.files) as reader:
        part, whole = reader.read([(layer, 13, 31), (layer, 0, 54)])
    np.testing.assert_allclose(whole.view("<f4"), row.decoded.reshape(-1), rtol=1e-6, atol=1e-6)
    assert part.tobytes() == whole[13 * 4 : 31 * 4].tobytes()


@pytest.mark.parametrize("folder", ["", "weights/shard=00000", "shard=00000"])
def test_a_folder_of_parquet_files_without_a_manifest(tmp_path: Path, folder: str) -> None:
    write_v2(tmp_path / folder / "part-a.parquet", [random_row(RNG, "a", 2, 3, "int8")])
    write_v2(tmp_path / folder / "part-b.parquet", [random_row(RNG, "b", 2, 3, "int2")])
    checkpoint = open_checkpoint(str(tmp_path))
    assert [layer.name for layer in checkpoint.layers] == ["a", "b"]
    assert len(checkpoint.files) == 2
    assert {len(values) for values in read_all(checkpoint).values()} == {24}


def test_a_dataset_file_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    path = write_v2(tmp_path / "a.parquet", [random_row(RNG, "a", 2, 3, "int8")])
    checkpoint = open_checkpoint(str(tmp_path))
    write_v2(path, [random_row(RNG, "a", 2, 3, "int8"), random_row(RNG, "b", 2, 3, "int8")])
    with (
        SourceReader(files=checkpoint.files) as reader,
        pytest.raises(InvalidCheckpoint, match="changed since"),
    ):
        reader.read([(checkpoint.layers[0], 0, 6)])


@pytest.mark.parametrize(
    "data", [b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b""], ids=["short", "zeros", "empty"]
)
def test_a_damaged_parquet_file_is_bad_input(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.parquet"
    path.write_bytes(data)
    for uri in (path, tmp_path):
        with pytest.raises(InvalidCheckpoint):
            open_checkpoint(str(uri))


def test_missing_blocks_are_bad_input(tmp_path: Path) -> None:
    row = random_row(RNG, "w", 2, 3, "int8", layer_shape=[5, 3], row_start=0)
    with pytest.raises(InvalidCheckpoint, match="w"):
        open_checkpoint(str(write_v2(tmp_path / "m.parquet", [row])))


@pytest.mark.parametrize("blob", ["scales", "data"])
def test_a_dataset_whose_values_are_damaged_is_bad_input_like_any_other_source(
    tmp_path: Path, blob: str
) -> None:
    """Headers are sound, so it is the worker that finds out."""
    row = random_row(RNG, "w", 4, 6, "int8")
    changed = bytes([row.columns[blob][0] ^ 1]) + row.columns[blob][1:]
    write_v2(tmp_path / "m.parquet", [row.but(**{blob: changed})])
    with pytest.raises(InvalidCheckpoint, match="w") as told:
        ArrowQuantizer(QuantizationConfig()).quantize(tmp_path / "m.parquet", tmp_path / "out")
    assert (told.value.exit_code, told.value.layer) == (2, "w")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_page_of_more_than_its_row_needs_is_bad_input_too(tmp_path: Path) -> None:
    rows = [kept_row(f"w{i}", np.zeros((2, 3), "<f4"), "float32") for i in range(2)]
    rows[1] = rows[1].but(data=bytes(1 << 24))
    write_v1(tmp_path / "m.parquet", rows, compression="zstd", use_dictionary=False)
    with pytest.raises(InvalidCheckpoint) as told:
        ArrowQuantizer(QuantizationConfig()).quantize(tmp_path / "m.parquet", tmp_path / "out")
    assert told.value.exit_code == 2


@pytest.mark.parametrize("change", [-3, 3])
def test_a_part_of_another_size_than_its_manifest_says_is_refused_before_any_work(
    tmp_path: Path, change: int
) -> None:
    make_target(tmp_path, [[random_row(RNG, "w", 4, 6, "int8")]])
    [part] = tmp_path.glob("weights/*/*.parquet")
    data = part.read_bytes()
    part.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(InvalidCheckpoint, match=f"it has {len(data) + change} bytes, the manifest says"):
        open_checkpoint(str(tmp_path))


def test_a_link_to_itself_is_bad_input(tmp_path: Path) -> None:
    make_target(tmp_path, [[random_row(RNG, "w", 4, 6, "int8")]])
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").symlink_to("manifest.json")
    with pytest.raises(NotFound, match="leads to itself"):
        open_checkpoint(str(tmp_path))
