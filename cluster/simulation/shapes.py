"""Large models as they are published: every tensor's name, shape and dtype, in files of about 5 GB, without weights.

The shapes follow from the config.json files of Meta-Llama-3-8B, Llama-3-70B, Llama-3.1-405B and DeepSeek-V3, and from
the tensors that transformers' LlamaForCausalLM and DeepSeek's own model have with them. DeepSeek-V3 is in float8 with a
scale for each block of 128 × 128, and includes the MTP layer: 671 B parameters, plus 14 B in that layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from checkout import ROOT  # noqa: F401 first: the package is found through it

from arrowquant_dist.checkpoint.table import Checkpoint, Layer, SourceFile
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.encodings.float8 import Float8Blocks
from arrowquant_dist.encodings.place import Place

URI = "s3://models/model"
FILE_NBYTES = 5_000_000_000
Tensors = Iterator[tuple[str, tuple[int, ...], str]]  # name, shape, stored dtype


def llama(hidden: int, inner: int, layers: int, vocabulary: int, kv: int) -> Tensors:
    """The tensors of a Llama. kv: rows of its key and value projections, 128 times the number of such heads."""
    yield "model.embed_tokens.weight", (vocabulary, hidden), "bfloat16"
    for number in range(layers):
        block = f"model.layers.{number}"
        for name, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            yield f"{block}.self_attn.{name}_proj.weight", (rows, hidden), "bfloat16"
        for name in ("gate", "up"):
            yield f"{block}.mlp.{name}_proj.weight", (inner, hidden), "bfloat16"
        yield f"{block}.mlp.down_proj.weight", (hidden, inner), "bfloat16"
        for name in ("input", "post_attention"):
            yield f"{block}.{name}_layernorm.weight", (hidden,), "bfloat16"
    yield "model.norm.weight", (hidden,), "bfloat16"
    yield "lm_head.weight", (vocabulary, hidden), "bfloat16"


def deepseek_v3() -> Tensors:
    hidden, vocabulary, layers, dense = 7168, 129_280, 61, 3
    yield "model.embed_tokens.weight", (vocabulary, hidden), "bfloat16"
    for number in range(layers + 1):  # the last is the MTP layer, which has additional tensors
        block = f"model.layers.{number}"
        yield from _attention(f"{block}.self_attn", hidden)
        if number < dense:
            yield from _mlp(f"{block}.mlp", hidden, 18_432)
        else:
            for expert in range(256):
                yield from _mlp(f"{block}.mlp.experts.{expert}", hidden, 2048)
            yield from _mlp(f"{block}.mlp.shared_experts", hidden, 2048)
            yield f"{block}.mlp.gate.weight", (256, hidden), "bfloat16"
            yield f"{block}.mlp.gate.e_score_correction_bias", (256,), "float32"
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{block}.{name}.weight", (hidden,), "bfloat16"
    mtp = f"model.layers.{layers}"
    yield f"{mtp}.embed_tokens.weight", (vocabulary, hidden), "bfloat16"
    yield f"{mtp}.eh_proj.weight", (hidden, 2 * hidden), "bfloat16"
    for name in ("enorm", "hnorm", "shared_head.norm"):
        yield f"{mtp}.{name}.weight", (hidden,), "bfloat16"
    yield f"{mtp}.shared_head.head.weight", (vocabulary, hidden), "bfloat16"
    yield "model.norm.weight", (hidden,), "bfloat16"
    yield "lm_head.weight", (vocabulary, hidden), "bfloat16"


def _attention(block: str, hidden: int) -> Tensors:
    """Tensors of latent attention: 128 heads of 128 + 64, ranks 1536 and 512."""
    for name, shape in (
        ("q_a_proj", (1536, hidden)),
        ("q_b_proj", (128 * 192, 1536)),
        ("kv_a_proj_with_mqa", (512 + 64, hidden)),
        ("kv_b_proj", (128 * 256, 512)),
        ("o_proj", (hidden, 128 * 128)),
    ):
        yield f"{block}.{name}.weight", shape, "float8_e4m3fn"
    for name, size in (("q_a_layernorm", 1536), ("kv_a_layernorm", 512)):
        yield f"{block}.{name}.weight", (size,), "bfloat16"


def _mlp(block: str, hidden: int, inner: int) -> Tensors:
    for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
        yield f"{block}.{name}_proj.weight", shape, "float8_e4m3fn"


MODELS: dict[str, Callable[[], Tensors]] = {
    "8B": lambda: llama(4096, 14_336, 32, 128_256, 1024),
    "70B": lambda: llama(8192, 28_672, 80, 128_256, 1024),
    "405B": lambda: llama(16_384, 53_248, 126, 128_256, 1024),
    "671B": deepseek_v3,
}


def checkpoint_of(tensors: Tensors) -> Checkpoint:
    """The checkpoint as open_checkpoint would return it for such files: float8 matrices are bfloat16 layers."""
    layers: list[Layer] = []
    sizes: list[int] = [0]
    for name, shape, dtype in tensors:
        values = math.prod(shape)
        scales = math.prod(-(-size // 128) for size in shape) * 4 if dtype.startswith("float8") else 0
        nbytes = values * DTYPES[dtype].itemsize
        if sizes[-1] and sizes[-1] + nbytes + scales > FILE_NBYTES:
            sizes.append(0)
        uri, offset = f"{URI}/model-{len(sizes):05d}.safetensors", sizes[-1]
        sizes[-1] += nbytes + scales
        if scales:
            grid = tuple(-(-size // 128) for size in shape)
            place = Place(uri, offset + nbytes, "float32", grid)
            encoding = Float8Blocks(dtype, (128, 128), place)
            layers.append(Layer(name, shape, "bfloat16", uri, offset, nbytes, encoding))
        else:
            layers.append(Layer(name, shape, dtype, uri, offset, nbytes))
    files = tuple(
        SourceFile(f"{URI}/model-{number:05d}.safetensors", nbytes, "1")
        for number, nbytes in enumerate(sizes, 1)
    )
    return Checkpoint(URI, "safetensors", tuple(layers), files)
