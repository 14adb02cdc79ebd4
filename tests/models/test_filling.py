"""How a model's weights are read: within the budget, verified, from disk and from an object store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, load_model
from arrowquant_dist.errors import CorruptWeights
from arrowquant_dist.models.tokenizer import load_tokenizer
from tests.datasets import manifest_of
from tests.models.served import differences, serve
from tests.servers.fixtures import Bucket

MIB = 1 << 20
RAW = RunConfig.from_dict({"compression": "none", "block_bytes": "4MiB"})


def random_model(model_class: Any, config: Any) -> Any:
    """Made without transformers' initialisation, which takes longer than all else here."""
    with torch.device("meta"):
        model = model_class(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.view(torch.int16).random_(0x3C00, 0x3D00)  # near 0.01
    return model


def wide_llama(**options: Any) -> LlamaForCausalLM:
    """128 MiB in bfloat16, an embedding of 32 MiB among it."""
    sizes = {"vocab_size": 16384, "hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8}
    config = LlamaConfig(
        **sizes, intermediate_size=4096, num_hidden_layers=2, dtype=torch.bfloat16, **options
    )
    return random_model(LlamaForCausalLM, config)


def wide_mixtral() -> MixtralForCausalLM:
    """120 MiB in bfloat16, most of it experts that are merged: 24 MiB a parameter, and twice 12."""
    sizes = {"vocab_size": 256, "hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8}
    config = MixtralConfig(**sizes, intermediate_size=1536, num_hidden_layers=3, num_local_experts=4)
    return random_model(MixtralForCausalLM, config)


GROWTH = """
import json, sys
from pathlib import Path
import torch, transformers
from arrowquant_dist import load_model
transformers.logging.disable_progress_bar()

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) << 10

tiny, target, budget, dtype = sys.argv[1:]
load_model(tiny, transformers.AutoModelForCausalLM, dtype=dtype)  # what is loaded and compiled once
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
model = load_model(target, transformers.AutoModelForCausalLM, memory_budget=int(budget), dtype=dtype)
print(resident("VmHWM") - before, sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("made", "dtype"), [(wide_llama, "bfloat16"), (wide_mixtral, "float32")])
def test_the_process_grows_by_the_model_and_the_budget(tmp_path: Path, made: Any, dtype: str) -> None:
    """Measured from outside: the kernel's peak of the resident set."""
    budget = 32 * MIB
    tiny, target = tmp_path / "tiny", tmp_path / "target"
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    for folder, model in (
        (tiny, MixtralForCausalLM(MixtralConfig(**sizes, intermediate_size=32))),
        (target, made()),
    ):
        model.save_pretrained(folder / "source")
        ArrowQuantizer(QuantizationConfig("int8"), RAW).quantize(folder / "source", folder / "int8")
    command = [sys.executable, "-c", GROWTH, str(tiny / "int8"), str(target / "int8"), str(budget), dtype]
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **malloc})
    grown, model_nbytes = map(int, done.stdout.split())
    assert model_nbytes < grown < model_nbytes + budget + 32 * MIB


def test_a_flipped_bit_is_found_and_its_layer_named(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = MixtralForCausalLM(
        MixtralConfig(**sizes, intermediate_size=64, num_hidden_layers=1, num_local_experts=2)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # no two rows of the dataset have the same bytes
    source, target = tmp_path / "source", tmp_path / "target"
    model.save_pretrained(source)
    ArrowQuantizer(QuantizationConfig("int8"), RAW).quantize(source, target)
    for part in manifest_of(target)["parts"]:
        path = target / part["path"]
        for row in pq.ParquetFile(path).read().to_pylist():
            damaged = path.read_bytes()
            at = damaged.index(row["data"]) + len(row["data"]) // 2
            path.write_bytes(damaged[:at] + bytes([damaged[at] ^ 4]) + damaged[at + 1 :])
            with pytest.raises(CorruptWeights) as caught:
                load_model(target, AutoModelForCausalLM)
            assert caught.value.layer == row["layer_name"]
            path.write_bytes(damaged)
    load_model(target, AutoModelForCausalLM)


def test_a_model_comes_from_an_object_store_as_from_disk(
    bucket: Bucket, minilm: Path, tmp_path: Path
) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    served = serve(
        LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_hidden_layers=1)), tmp_path
    )
    for path in minilm.glob("*token*"):
        (served.target / path.name).write_bytes(path.read_bytes())
    uri = f"{bucket.uri}/models/llama-int8"
    bucket.objects.upload_folder(served.target, uri)
    ours = load_model(uri, AutoModelForCausalLM, storage_options=bucket.storage_options)
    assert differences(ours, AutoModelForCausalLM.from_pretrained(served.decoded)) == []
    tokenizer = load_tokenizer(uri, storage_options=bucket.storage_options)
    assert tokenizer("Hello world")["input_ids"] == load_tokenizer(minilm)("Hello world")["input_ids"]
