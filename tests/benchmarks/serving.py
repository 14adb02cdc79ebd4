"""Time and memory of models whose weights stay codes in memory, against the same models in float32 or bfloat16."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, quantize_tensor
from tests.benchmarks.table import Row, Table, Target, at_most
from tests.benchmarks.timing import all_seconds, run_process

# Shares of float32's time: one input times a square matrix; 32 sentences through MiniLM. MB of MiniLM's codes in
# memory.
_ONE_INPUT = {"int8": 0.6, "int4": 0.5, "int3": None, "int2": 0.5}
_SENTENCES = {"int8": 1.2, "int4": 1.2, "int2": 1.5}
RESIDENT_MB = {"int8": 60.0, "int2": 30.0}
_MANY = 256  # number of inputs, as in a prompt
_WORDS = [
    "the",
    "of",
    "and",
    "a",
    "model",
    "stores",
    "its",
    "weights",
    "as",
    "codes",
    "in",
    "memory",
    "while",
    "cars",
    "trains",
    "and",
    "birds",
    "travel",
    "far",
    "away",
]

# Before that, libraries are imported, a small model has run (so BLAS is loaded), and a dataset has been opened.
MEASURED = """
import sys
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModel
from arrowquant_dist import WeightLoader, load_model

target = sys.argv[1]
tokens = torch.arange(1, 129).reshape(8, 16)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def run(model):
    with torch.inference_mode():
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens))

small = AutoConfig.from_pretrained(target)
small.num_hidden_layers, small.vocab_size = 1, 200
run(AutoModel.from_config(small).eval())
WeightLoader(target).close()
before = resident()
model = load_model(target, AutoModel, codes=True)
run(model)
print(resident() - before)
"""


def tables(side: int, runs: int) -> Iterator[Table]:
    """side: side of the square matrix. runs: number of rounds, in turns; medians are compared."""
    yield Table(f"one input times a {side}² matrix, median of {runs}", tuple(_one_input(side, runs)))
    for width in (side // 2, side):
        name = f"{_MANY} bfloat16 inputs times a {width}² matrix, median of {runs}"
        yield Table(name, tuple(_many_inputs(width, runs)))
    with tempfile.TemporaryDirectory() as folder:
        targets = {name: _quantized(name, Path(folder, name)) for name in _SENTENCES}
        yield Table(f"MiniLM, 32 sentences, median of {runs}", tuple(_sentences(targets, runs)))
        yield Table("MiniLM, codes in memory and run once", tuple(_resident(targets)))


def _one_input(side: int, runs: int) -> Iterator[Row]:
    import torch

    from arrowquant_dist import QuantLinear, QuantWeight

    values, plain = torch.randn(1, side), torch.randn(side, side)
    contenders: dict[str, Callable[[], object]] = {"plain": lambda: torch.nn.functional.linear(values, plain)}
    kinds = {"per channel": (True, True), "g128": (False, True), "g128 with zero points": (False, False)}
    for quant_type in _ONE_INPUT:
        for kind, (per_channel, symmetric) in kinds.items():
            config = QuantizationConfig.from_dict(
                {
                    "quant_type": quant_type,
                    "per_channel": per_channel,
                    "symmetric": symmetric,
                    "method": "rtn",
                }
            )
            layer = QuantLinear(QuantWeight.of(quantize_tensor(plain, config)))
            contenders[f"{quant_type} {kind}"] = lambda layer=layer: layer(values)  # type: ignore[misc]
    with torch.inference_mode():
        yield from _rows(contenders, _ONE_INPUT, runs)


def _many_inputs(side: int, runs: int) -> Iterator[Row]:
    """Many inputs, against the layer that is loaded decoded, in bfloat16."""
    import torch

    from arrowquant_dist import QuantLinear, QuantWeight

    source = torch.randn(side, side)
    values, plain = torch.randn(_MANY, side).bfloat16(), source.bfloat16()
    contenders: dict[str, Callable[[], object]] = {"plain": lambda: torch.nn.functional.linear(values, plain)}
    kinds = {"int8": (True, True), "int4": (False, False), "int2": (False, False)}
    for quant_type, (per_channel, symmetric) in kinds.items():
        config = QuantizationConfig.from_dict(
            {"quant_type": quant_type, "per_channel": per_channel, "symmetric": symmetric, "method": "rtn"}
        )
        layer = QuantLinear(QuantWeight.of(quantize_tensor(source, config), torch.bfloat16))
        contenders[quant_type] = lambda layer=layer: layer(values)  # type: ignore[misc]
    with torch.inference_mode():
        yield from _rows(contenders, dict.fromkeys(kinds), runs, "decoded")


def _sentences(targets: Mapping[str, Path], runs: int) -> Iterator[Row]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from arrowquant_dist import load_model

    texts = [" ".join(_WORDS[(3 * i + j) % len(_WORDS)] for j in range(8 + i % 17)) for i in range(32)]
    given = AutoTokenizer.from_pretrained(targets["int8"])(texts, padding=True, return_tensors="pt")
    models: dict[str, Any] = {"plain": load_model(targets["int8"], AutoModel)}
    models |= {name: load_model(target, AutoModel, codes=True) for name, target in targets.items()}
    contenders = {name: (lambda model=model: model(**given)) for name, model in models.items()}
    with torch.inference_mode():
        yield from _rows(contenders, _SENTENCES, runs)


def _resident(targets: Mapping[str, Path]) -> Iterator[Row]:
    for name, most in RESIDENT_MB.items():
        done = run_process([sys.executable, "-c", MEASURED, str(targets[name])])
        yield Row(
            f"{name}: resident above the process's before", int(done.output) / 1e6, "MB", target=at_most(most)
        )


def _rows(
    contenders: Mapping[str, Callable[[], object]],
    limits: Mapping[str, float | None],
    runs: int,
    other: str = "float32",
) -> Iterator[Row]:
    """One row per contender but `plain`, against that one. other: its name in the table."""
    seconds = {name: 1e3 * median(found) for name, found in all_seconds(contenders, runs).items()}
    plain = seconds.pop("plain")
    for name, ours in seconds.items():
        most = limits[name.split()[0]]
        target = None if most is None else Target(most, at_most=True, of_ratio=True)
        yield Row(name, ours, "ms", other, plain, target)


def _quantized(quant_type: str, target: Path) -> Path:
    grouped = quant_type != "int8"
    config = QuantizationConfig.from_dict(
        {"quant_type": quant_type, "per_channel": not grouped, "symmetric": not grouped}
    )
    ArrowQuantizer(config).quantize("minilm", target)
    return target
