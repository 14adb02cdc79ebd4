"""What settings may be that are one of a few words: a type each, which editors complete and type checkers hold callers
to. The tuples of what is allowed at run time are made of them."""

from __future__ import annotations

from typing import Literal

QuantType = Literal["int8", "int4", "int3", "int2", "fp16"]
Untouched = Literal["none"]  # what a config has as its type where layers without codes stay byte for byte
ScaleDtypeName = Literal["float32", "bfloat16"]
NonFinite = Literal["error", "keep"]
CompressionName = Literal["zstd", "none"]
EngineName = Literal["auto", "inline", "ray"]
DirectWrites = Literal["auto", "never"]
Activations = Literal["int8"]  # what becomes of the inputs of products, of exports and in memory
