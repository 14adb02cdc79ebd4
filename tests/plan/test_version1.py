"""Plans of version 1 in targets are read: `version1.arrow` was written by the last commit that made such plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.checkpoint.encodings.dataset import DATASET_ROWS
from arrowquant_dist.checkpoint.encodings.float8 import Float8Blocks
from arrowquant_dist.checkpoint.encodings.int8 import Int8
from arrowquant_dist.checkpoint.encodings.microscaled import Microscaled
from arrowquant_dist.checkpoint.encodings.packed import PackedInts
from arrowquant_dist.checkpoint.encodings.place import Place
from arrowquant_dist.checkpoint.encodings.strided import Strided
from arrowquant_dist.checkpoint.encodings.transposed import TransposedMicroscaled
from arrowquant_dist.checkpoint.table import Checkpoint, Layer, SourceFile
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.errors import ArrowQuantError, CorruptWeights
from arrowquant_dist.plan import PLAN_VERSION, differences, is_same_work, make_plan, plan_from_table
from arrowquant_dist.plan.differences import OTHER_CODE
from arrowquant_dist.target.plan_file import read_plan_file
from tests.plan.plan_bytes import read_again

DATA = Path(__file__).with_name("version1.arrow").read_bytes()
A, B, D = "s3://bucket/model/a.safetensors", "s3://bucket/model/b.bin", "s3://bucket/dataset"
E8M0 = "float8_e8m0fnu"
_ELSEWHERE = Float8Blocks("float8_e5m2", (1, 200), Place(B, 50_000, "bfloat16", (300, 1)))
_PACKED = PackedInts(
    4,
    (1, 32),
    Place(A, 510_000, "float16", (64, 3)),
    Place(A, 520_000, "int32", (8, 3)),
    Place(A, 530_000, "int32", (96,)),
)
_INT8 = Int8((64, 96), Place(A, 710_000, "float32", (1,)), Place(A, 720_000, "int8", (1,)), None)
LAYERS = (
    Layer("again.weight", (30, 20), "float32", D, 0, 2400, DATASET_ROWS),
    Layer("embed.weight", (2000, 64), "bfloat16", A, 1000, 256_000),
    Layer("norm.weight", (64,), "float32", A, 257_000, 256),
    Layer(
        *("float8.weight", (300, 200), "bfloat16", A, 300_000, 60_000),
        Float8Blocks("float8_e4m3fn", (128, 128), Place(A, 360_000, "float32", (3, 2))),
    ),
    Layer("float8_elsewhere.weight", (300, 200), "bfloat16", A, 400_000, 60_000, _ELSEWHERE),
    Layer("packed.weight", (64, 96), "bfloat16", A, 500_000, 3072, _PACKED),
    Layer(
        *("packed_plain.weight", (64, 96), "bfloat16", A, 600_000, 1536),
        PackedInts(2, (1, 96), Place(A, 610_000, "float32", (64, 1)), None, None),
    ),
    Layer("int8.weight", (64, 96), "bfloat16", A, 700_000, 6144, _INT8),
    Layer(
        *("experts.down.weight", (2, 64, 32), "bfloat16", A, 800_000, 2048),
        Microscaled(Place(A, 810_000, E8M0, (2, 64, 1))),
    ),
    Layer(
        *("experts.up.weight", (2, 64, 32), "bfloat16", A, 900_000, 2048),
        TransposedMicroscaled(Place(A, 910_000, E8M0, (2, 32, 2))),
    ),
    Layer("view.weight", (50, 40), "float32", B, 2000, 8000, Strided((1, 50))),
)
SOURCE = Checkpoint(
    "s3://bucket/model",
    "safetensors",
    LAYERS,
    (
        SourceFile(A, 1_000_000, "v1"),
        SourceFile(B, 100_000, "v1"),
        SourceFile(f"{D}/weights/part.parquet", 5000, "v1"),
    ),
    {"lm_head.weight": "embed.weight"},
    ("config.json",),
    notes=("a note",),
)
CONFIG = QuantizationConfig(
    "int4", per_channel=False, group_size=32, mixed_precision_layers=["embed", "gone"]
)
RUN = RunConfig(block_bytes=64 << 10)


def test_a_plan_of_version_1_is_read_whole() -> None:
    plan = read_again(DATA)
    assert plan.version == 1
    assert plan.fingerprint == "xxh3_128:69a5a383c634298e12d57fe156f38fc3"
    now = make_plan(SOURCE, CONFIG, RUN)
    assert now.version == PLAN_VERSION != 1
    assert plan == replace(now, version=1, fingerprint=plan.fingerprint, code="")
    assert tuple({block.layer.name: block.layer for block in plan.blocks}.values()) == LAYERS


def test_of_the_same_source_and_config_only_the_code_differs() -> None:
    plan, now = read_again(DATA), make_plan(SOURCE, CONFIG, RUN)
    assert differences(plan, now) == [OTHER_CODE]
    assert is_same_work(plan, now)
    scales = replace(_ELSEWHERE, scales=replace(_ELSEWHERE.scales, offset=60_000))
    layers = [replace(x, encoding=scales) if x.encoding == _ELSEWHERE else x for x in LAYERS]
    moved = make_plan(replace(SOURCE, layers=tuple(layers)), CONFIG, RUN)
    assert differences(plan, moved) == [OTHER_CODE, "layer changed: float8_elsewhere.weight"]
    assert not is_same_work(plan, moved)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_a_flipped_byte_of_it_gives_the_same_plan_or_one_clear_error(place: int, mask: int) -> None:
    damaged = bytearray(DATA)
    damaged[place] ^= mask
    try:
        plan = read_again(bytes(damaged))
    except ArrowQuantError:
        return
    assert plan.shards == read_again(DATA).shards


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("scaled:", "scalld:"),
        ('"offset":510000', '"offset":510001'),
        (',"transposed":true', ""),
        ('"codes"', '"kodes"'),
        ("[128,128]", "[128]"),
        ("strided:[1, 50]", "strided:["),
    ],
)
def test_an_encoding_that_was_changed_is_refused_before_it_is_parsed(before: str, after: str) -> None:
    table = read_plan_file(DATA, "plan.arrow")
    texts = [text.replace(before, after) for text in table["encoding"].to_pylist()]
    index = table.schema.names.index("encoding")
    with pytest.raises(CorruptWeights, match="the plan's fingerprint is"):
        plan_from_table(table.set_column(index, "encoding", pa.array(texts)))
