"""calibrate: its time next to that of the forward passes alone, and its memory for few blocks and for many.

Peaks are those of separate processes, `python -m tests.benchmarks.calibrating SOURCE OUT TEXTS`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, calibrate
from arrowquant_dist.checkpoint.open import source_uri
from arrowquant_dist.texts import read_texts
from tests.benchmarks.table import Row, Table, at_most
from tests.benchmarks.timing import run_process
from tests.evaluation.models import VOCABULARY, save

_INT4 = QuantizationConfig("int4", per_channel=False, group_size=128, symmetric=False)
_TIMES, _MORE_SECONDS = 3, 60
_BLOCKS = (4, 40)
_MOST_GROWTH = 1.15


def tables(texts: int, folder: str | None) -> Iterator[Table]:
    """texts: number of the package's texts that MiniLM is calibrated with."""
    found = read_texts("builtin").items[:texts]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        yield Table(
            "calibrate with a config, quantize by gptq and write, MiniLM", (_speed(found, Path(place)),)
        )
    with tempfile.TemporaryDirectory(dir=folder) as place:
        yield Table("calibrate: peak of the process", (_growth(Path(place), len(found)),))


def _speed(texts: Sequence[str], folder: Path) -> Row:
    passes = _forward_seconds(texts)
    config = _INT4.replace(method="gptq", hessians=str(folder / "statistics"))
    began = time.perf_counter()
    calibrate("minilm", folder / "statistics", [*texts], quantize=config)
    ArrowQuantizer(config, RunConfig(engine="inline")).quantize("minilm", folder / "target")
    seconds = time.perf_counter() - began
    most = _TIMES * passes + _MORE_SECONDS
    return Row(f"{len(texts)} texts", seconds, "s", "forward passes", passes, at_most(most))


def _forward_seconds(texts: Sequence[str]) -> float:
    """Seconds of the original's forward passes in plain transformers, text by text."""
    folder = source_uri("minilm")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    given = [tokenizer(text, truncation=True, return_tensors="pt") for text in texts]
    with torch.no_grad():
        model(**given[0])
        began = time.perf_counter()
        for one in given:
            model(**one)
    return time.perf_counter() - began


def _growth(folder: Path, texts: int) -> Row:
    """Memory of models with few and many blocks of 3 MB per path, each in a folder of its own."""
    peaks = []
    for blocks in _BLOCKS:
        source = folder / f"{blocks}"
        torch.manual_seed(0)
        sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8}
        save(BertModel(BertConfig(num_hidden_layers=blocks, vocab_size=VOCABULARY, **sizes)), source)
        command = [sys.executable, "-m", __name__, str(source), str(folder / f"out{blocks}"), str(texts)]
        peaks.append(run_process(command).peak_nbytes / (1 << 20))
    few, many = peaks
    name = f"{_BLOCKS[1]} blocks"
    return Row(name, many, "MiB", f"{_BLOCKS[0]} blocks", few, at_most(_MOST_GROWTH * few))


def main() -> None:
    source, out, texts = sys.argv[1:]
    config = _INT4.replace(method="gptq", hessians=out)
    calibrate(source, out, [*read_texts("builtin").items[: int(texts)]], quantize=config)


if __name__ == "__main__":
    main()
