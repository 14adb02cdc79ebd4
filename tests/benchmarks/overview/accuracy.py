"""all-MiniLM-L6-v2 stored by this program and by peers: bytes, and how close its sentence embeddings stay.

Every matrix is quantized, embeddings too; vectors stay float32. All are the same sentence-transformers model, filled
with the values of each way to store it, and judged with the same texts, which were not used for calibration. Bytes are
those of the weights: for ours those of the part files, for peers those that `decoded_peers` counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader, calibrate
from arrowquant_dist.checkpoint.open import source_uri
from arrowquant_dist.texts import read_texts
from tests.benchmarks.kernels import grouped
from tests.benchmarks.overview.decoded_peers import Decoder, decoders
from tests.benchmarks.overview.figures import Spot

OURS = "ours"
CALIBRATED = f"{OURS}, "  # followed by the number of texts
JUDGED_BY = "builtin:held-back"
_RUN = RunConfig(engine="inline")
DATA_FREE = {
    "int8 a row": QuantizationConfig("int8"),
    "int4 g128": grouped(4, symmetric=False),
    "int3 g128": grouped(3, symmetric=False),
    "int2 g128": grouped(2, symmetric=False),
    **{
        f"--size {size}": QuantizationConfig(size=size)
        for size in ("5.5MB", "7.3MB", "8.5MB", "11.1MB", "16MB")
    },
}
WITH_TEXTS = {
    f"--size {size} --hessians": QuantizationConfig(size=size)
    for size in ("5.5MB", "7.3MB", "8.5MB", "11.1MB")
}

Values = Mapping[str, torch.Tensor]


class Judge:
    """The model with its own values, and the embeddings that it gives the texts."""

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer

        self._model: Any = SentenceTransformer(source_uri("minilm"), device="cpu")
        self._inner: torch.nn.Module = self._model[0].auto_model
        self._texts = list(read_texts(JUDGED_BY).items)
        self.original = {name: value.clone() for name, value in self._inner.state_dict().items()}
        self._wanted = self._embedded()

    def cosine(self, values: Values) -> float:
        """Mean cosine over the texts. values: values by the source's names; the model may lack a buffer of the source,
        and what `values` lacks keeps the original's value."""
        known = {name: value for name, value in values.items() if name in self.original}
        assert known
        self._inner.load_state_dict({**self.original, **known})
        found = self._embedded()
        return float(np.mean(np.sum(found * self._wanted, axis=1)))

    def _embedded(self) -> np.ndarray:
        found: np.ndarray = self._model.encode(
            self._texts, normalize_embeddings=True, show_progress_bar=False
        )
        return found.astype(np.float64)


def spots(texts: int) -> Iterator[Spot]:
    """texts: number of texts of `builtin` that ours is calibrated with; 0: ours is not calibrated."""
    judge = Judge()
    with tempfile.TemporaryDirectory() as place:
        for name, config in DATA_FREE.items():
            yield _of_dataset(judge, OURS, name, _quantized(config, Path(place, name)))
        for decoder in decoders():
            yield _of_peer(judge, decoder)
        if texts:
            for name, config in WITH_TEXTS.items():
                yield _of_dataset(
                    judge, f"{CALIBRATED}{texts} texts", name, _calibrated(config, texts, Path(place, name))
                )


def _quantized(config: QuantizationConfig, folder: Path) -> Path:
    ArrowQuantizer(config, _RUN).quantize("minilm", str(folder))
    return folder


def _calibrated(config: QuantizationConfig, texts: int, folder: Path) -> Path:
    items = read_texts("builtin").items
    some = [items[k * len(items) // texts] for k in range(texts)]
    statistics = str(folder / "statistics")
    with_them = config.replace(hessians=statistics)
    calibrate("minilm", statistics, some, quantize=with_them, run=_RUN)
    return _quantized(with_them, folder / "dataset")


def _of_dataset(judge: Judge, maker: str, name: str, folder: Path) -> Spot:
    nbytes = sum(path.stat().st_size for path in (folder / "weights").rglob("*.parquet"))
    with WeightLoader(folder, dtype="float32") as loader:
        return Spot(maker, name, nbytes, judge.cosine(dict(iter(loader))))


def _of_peer(judge: Judge, decoder: Decoder) -> Spot:
    values, nbytes = {}, 0
    for name, value in judge.original.items():
        if value.ndim != 2 or not value.is_floating_point():
            nbytes += value.nbytes
            continue
        values[name], stored = decoder.stored(value)
        nbytes += stored
    return Spot(decoder.maker, decoder.name, nbytes, judge.cosine(values))
