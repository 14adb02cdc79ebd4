"""A source with a layer of each kind of encoding. SOURCE and LAYERS are those that `version1.arrow` was made from; NOW
also has the kinds that were added later."""

from __future__ import annotations

from dataclasses import replace

from arrowquant_dist.checkpoint.table import Checkpoint, Layer, SourceFile
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.encodings.affine import Affine
from arrowquant_dist.encodings.awq import Awq, AwqRows
from arrowquant_dist.encodings.dataset import DATASET_ROWS
from arrowquant_dist.encodings.float8 import Float8Blocks
from arrowquant_dist.encodings.gptq import LESS_ONE, Gptq
from arrowquant_dist.encodings.int8 import Int8
from arrowquant_dist.encodings.llm_int8 import LlmInt8
from arrowquant_dist.encodings.microscaled import Microscaled
from arrowquant_dist.encodings.nvfp4 import Nvfp4
from arrowquant_dist.encodings.packed import PackedInts
from arrowquant_dist.encodings.place import Place
from arrowquant_dist.encodings.row_pairs import Nvfp4RowPairs
from arrowquant_dist.encodings.strided import Strided
from arrowquant_dist.encodings.transposed import TransposedMicroscaled

A, B, D = "s3://bucket/model/a.safetensors", "s3://bucket/model/b.bin", "s3://bucket/dataset"
E8M0 = "float8_e8m0fnu"
ELSEWHERE = Float8Blocks("float8_e5m2", (1, 200), Place(B, 50_000, "bfloat16", (300, 1)))
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
    Layer("float8_elsewhere.weight", (300, 200), "bfloat16", A, 400_000, 60_000, ELSEWHERE),
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
LATER = (
    Layer(
        *("gptq.weight", (64, 96), "float16", A, 920_000, 3072),
        Gptq(
            *(4, 32, Place(A, 930_000, "float16", (3, 64)), Place(A, 931_000, "int32", (3, 8)), LESS_ONE),
            Place(A, 932_000, "int32", (96,)),
        ),
    ),
    Layer(
        *("awq.weight", (64, 96), "float16", A, 940_000, 3072),
        Awq(32, Place(A, 950_000, "float16", (3, 64)), Place(A, 951_000, "int32", (3, 8))),
    ),
    Layer(
        *("gemv.weight", (64, 96), "float16", A, 955_000, 3072),
        AwqRows(32, Place(A, 958_100, "float16", (64, 8)), Place(A, 959_200, "int32", (64, 1))),
    ),
    Layer(
        *("mlx.weight", (64, 96), "bfloat16", A, 960_000, 2304),
        Affine(3, 32, Place(A, 970_000, "bfloat16", (64, 3)), Place(A, 971_000, "bfloat16", (64, 3))),
    ),
    Layer(
        *("llm_int8.weight", (64, 96), "float16", A, 980_000, 6144),
        LlmInt8(Place(A, 990_000, "float32", (64,))),
    ),
    Layer(
        *("nvfp4.weight", (2, 64, 32), "bfloat16", A, 920_000, 2048),
        Nvfp4(16, Place(A, 925_000, "float8_e4m3fn", (2, 64, 2)), None, Place(A, 926_000, "float32", (1,))),
    ),
    Layer(
        *("experts.gate_up_proj", (2, 32, 64), "bfloat16", A, 930_000, 2048),
        Nvfp4RowPairs(
            16, Place(A, 935_000, "float8_e4m3fn", (2, 2, 64)), Place(A, 936_000, "float32", (2,)), None
        ),
    ),
)
EVERY = (*LAYERS, *LATER)
NOW = replace(SOURCE, layers=EVERY)
CONFIG = QuantizationConfig(
    "int4", per_channel=False, group_size=32, mixed_precision_layers=["embed", "gone"]
)
RUN = RunConfig(block_bytes=64 << 10)
