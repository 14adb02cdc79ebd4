"""Every way of storing weights that is known."""

from __future__ import annotations

from arrowquant_dist.encodings.affine import Affine
from arrowquant_dist.encodings.awq import Awq, AwqRows
from arrowquant_dist.encodings.dataset import DatasetRows
from arrowquant_dist.encodings.encoding import Encoding
from arrowquant_dist.encodings.float8 import Float8Blocks
from arrowquant_dist.encodings.gptq import Gptq
from arrowquant_dist.encodings.int8 import Int8
from arrowquant_dist.encodings.llm_int8 import LlmInt8
from arrowquant_dist.encodings.microscaled import Microscaled
from arrowquant_dist.encodings.nvfp4 import Nvfp4
from arrowquant_dist.encodings.packed import PackedInts
from arrowquant_dist.encodings.raw import Raw
from arrowquant_dist.encodings.row_pairs import Nvfp4RowPairs
from arrowquant_dist.encodings.strided import Strided
from arrowquant_dist.encodings.transposed import TransposedMicroscaled

ENCODINGS: tuple[type[Encoding], ...] = (
    Raw,
    Strided,
    Float8Blocks,
    Int8,
    PackedInts,
    Microscaled,
    TransposedMicroscaled,
    Gptq,
    Awq,
    AwqRows,
    Affine,
    LlmInt8,
    Nvfp4,
    Nvfp4RowPairs,
    DatasetRows,
)
BY_KIND: dict[str, type[Encoding]] = {encoding.kind: encoding for encoding in ENCODINGS}
