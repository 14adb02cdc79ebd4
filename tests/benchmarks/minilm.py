"""The real all-MiniLM-L6-v2: accuracy, sizes, and how long the program takes when started from a shell."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from arrowquant_dist import ArrowQuantizer, RunConfig
from arrowquant_dist.config import load_config
from tests.benchmarks.table import Row, Table, Target, at_least, at_most
from tests.benchmarks.timing import run_process

CONFIGS = Path(__file__).parents[2] / "configs"

# config → least mean cosine, least minimal cosine, least size ratio to fp16, to fp32
_TARGETS: dict[str, tuple[float, float | None, float | None, float | None]] = {
    "int8": (0.9999, 0.999, 2.14, 4.28),
    "int4": (0.9948, None, None, None),
    "int2": (0.926, None, 7.0, None),
    "int2-asymmetric": (0.936, None, 6.3, None),
}


def tables(names: Sequence[str] = tuple(_TARGETS)) -> Iterator[Table]:
    """names: names of files in configs/."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in names for row in _rows(name, Path(folder, name))]
    yield Table("MiniLM, all layers with 2 or more dimensions quantized", tuple(rows))


def _rows(name: str, target: Path) -> Iterator[Row]:
    config, _ = load_config(str(CONFIGS / f"{name}.yaml"))
    report = ArrowQuantizer(config, RunConfig(engine="inline")).quantize("minilm", str(target)).to_dict()
    mean, lowest, of_fp16, of_fp32 = _TARGETS[name]
    cosine, totals = report["accuracy"]["cosine"], report["totals"]
    yield Row(f"{name}: mean weight cosine", cosine["mean"], "", target=at_least(mean))
    yield Row(f"{name}: min weight cosine", cosine["min"], "", target=_least(lowest))
    stored = dataset_nbytes(target)
    sizes = [("fp16", "fp16_nbytes", of_fp16), ("fp32", "source_nbytes", of_fp32)]
    for other, key, least in sizes:
        row = f"{name}: smaller than {other}, parts + index + run"
        yield Row(row, totals[key] / stored, "×", target=_least(least))
    copied = sidecar_nbytes(target)
    with_copies = (totals["fp16_nbytes"] + copied) / (stored + copied)
    yield Row(f"{name}: the same with the model's tokenizer on both sides", with_copies, "×")


def _least(value: float | None) -> Target | None:
    return None if value is None else at_least(value)


def dataset_nbytes(target: Path) -> int:
    """Bytes of the target without its manifest, its report and the files copied from the source."""
    return sum(path.stat().st_size for path in _files(target) if _counts(path.relative_to(target)))


def sidecar_nbytes(target: Path) -> int:
    """Bytes of the files copied from the source."""
    return sum(
        path.stat().st_size
        for path in _files(target)
        if not _counts(path.relative_to(target)) and not _is_report(path.relative_to(target))
    )


def _files(target: Path) -> list[Path]:
    return [path for path in target.rglob("*") if path.is_file()]


def _counts(path: Path) -> bool:
    return path.parts[0] in {"weights", "run", "index.parquet"}


def _is_report(path: Path) -> bool:
    return path.parts[0] in {"report", "manifest.json"}


def process_tables(runs: int) -> Iterator[Table]:
    """Times of the whole process, including interpreter and imports: of the first run ever, then with compiled
    kernels."""
    with tempfile.TemporaryDirectory() as folder:
        cache = {"NUMBA_CACHE_DIR": str(Path(folder, "kernels"))}
        first = _process_seconds(Path(folder, "first"), cache)
        warm = [_process_seconds(Path(folder, f"warm{k}"), cache) for k in range(runs)]
    yield Table(
        f"arrowquant quantize minilm --config int8.yaml from the shell, best of {runs}",
        (
            Row("kernels compiled before", min(warm), "s", target=at_most(2.0)),
            Row("first run ever", first, "s", target=at_most(10.0)),
        ),
    )


def _process_seconds(target: Path, environment: dict[str, str]) -> float:
    command = [sys.executable, "-m", "arrowquant_dist", "quantize", "minilm", str(target)]
    options = ["--config", str(CONFIGS / "int8.yaml"), "--engine", "inline"]
    return run_process([*command, *options], environment).seconds
