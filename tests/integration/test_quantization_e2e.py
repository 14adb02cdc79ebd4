"""The acceptance suite: real MiniLM through the whole program, checked by other means than the program's.

The values of a dataset are computed here with pyarrow and numpy from the published formula, and those of the source
come from the safetensors package. The report has to agree with both, and is never used as the reference.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, WeightLoader
from tests.integration.conftest import Targets
from tests.integration.layers import QUANTIZED, Layer, cosine, read_layers, read_table
from tests.integration.v1 import SCHEMA as V1_SCHEMA
from tests.integration.v1 import write_v1

V1_COLUMNS: dict[str, tuple[pa.DataType, ...]] = {
    **{name: (V1_SCHEMA.field(name).type,) for name in V1_SCHEMA.names},
    "data": (pa.binary(), pa.large_binary()),
}
V2_COLUMNS = {
    **V1_COLUMNS,
    "quant_type": (pa.string(),),
    "scales": (pa.binary(),),
    "zero_points": (pa.binary(),),
    "quant_axis": (pa.int32(),),
    "group_size": (pa.int32(),),
    "layer_shape": (pa.list_(pa.int64()),),
    "row_dims": (pa.int32(),),
    "row_start": (pa.int64(),),
    "chunk_digests": (pa.binary(),),
    "checksum": (pa.string(),),
}
CONFIGS = ["int8", "int4", "int2", "int2-asymmetric"]
MIB = 1 << 20


@dataclass(frozen=True)
class Measured:
    """A target against the original weights, as this module sees them."""

    layers: dict[str, Layer]
    cosines: dict[str, float]
    stored_nbytes: int
    fp16_nbytes: int

    @property
    def mean_cosine(self) -> float:
        return float(np.mean(list(self.cosines.values())))

    @property
    def compression(self) -> float:
        """Against all of the source in fp16."""
        return self.fp16_nbytes / self.stored_nbytes


class Measurements:
    """Each target decoded once."""

    def __init__(self, targets: Targets, weights: dict[str, np.ndarray]) -> None:
        self._targets, self._weights = targets, weights
        self._done: dict[str, Measured] = {}

    def __getitem__(self, config: str) -> Measured:
        if config not in self._done:
            self._done[config] = _measure(self._targets[config], self._weights)
        return self._done[config]


def _measure(target: Path, weights: dict[str, np.ndarray]) -> Measured:
    layers = read_layers(target)
    quantized = [name for name, layer in layers.items() if layer.quant_type in QUANTIZED]
    floats = [w for w in weights.values() if w.dtype.kind == "f"]
    others = [w for w in weights.values() if w.dtype.kind != "f"]
    return Measured(
        layers,
        {name: cosine(weights[name], layers[name].values) for name in quantized},
        # The whole dataset and what finds its rows and resumes it; manifest, reports and copied files aside.
        sum(f.stat().st_size for part in ("weights", "run", "index.parquet") for f in _files(target / part)),
        sum(2 * w.size for w in floats) + sum(w.nbytes for w in others),
    )


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]


@pytest.fixture(scope="session")
def measured(targets: Targets, weights: dict[str, np.ndarray]) -> Measurements:
    return Measurements(targets, weights)


def report_of(target: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((target / "report" / "report.json").read_text())
    return values


def assert_complete(target: Path, weights: dict[str, np.ndarray], found: Measured, quant_type: str) -> None:
    """Every tensor of the source is there once, matrices quantized, the rest kept; the report says the same."""
    assert list(found.layers) == sorted(weights)
    for name, original in weights.items():
        layer = found.layers[name]
        assert layer.values.shape == original.shape
        if original.ndim >= 2 and original.dtype.kind == "f":
            assert layer.quant_type == quant_type
        else:
            assert layer.quant_type == "none"
            np.testing.assert_array_equal(layer.values, original)
    report, manifest = report_of(target), json.loads((target / "manifest.json").read_text())
    assert report["totals"]["layers"] == manifest["totals"]["layers"] == len(weights)
    assert report["totals"]["params"] == sum(w.size for w in weights.values())
    assert report["totals"]["source_nbytes"] == sum(w.nbytes for w in weights.values())
    assert report["totals"]["fp16_nbytes"] == found.fp16_nbytes
    assert report["totals"]["parts_nbytes"] == sum(f.stat().st_size for f in _files(target / "weights"))
    assert {c["quant_type"]: c["layers"] for c in report["quant_types"]}[quant_type] == len(found.cosines)
    assert report["accuracy"]["cosine"]["mean"] == pytest.approx(found.mean_cosine, abs=1e-7)
    assert report["accuracy"]["cosine"]["min"] == pytest.approx(min(found.cosines.values()), abs=1e-7)


class TestRealModelQuantization:
    def test_minilm_int8_quantization(
        self, int8: Path, weights: dict[str, np.ndarray], measured: Measurements
    ) -> None:
        assert_complete(int8, weights, measured["int8"], "int8")

    @pytest.mark.parametrize("config", ["int2", "int2-asymmetric"])
    def test_minilm_int2_quantization(
        self, targets: Targets, weights: dict[str, np.ndarray], measured: Measurements, config: str
    ) -> None:
        assert_complete(targets[config], weights, measured[config], "int2")


class TestCompressionRatioValidation:
    def test_int8_compression_ratio_target(
        self, measured: Measurements, weights: dict[str, np.ndarray]
    ) -> None:
        found = measured["int8"]
        assert found.compression >= 2.14  # vectors are float32, as in the source
        assert sum(w.nbytes for w in weights.values()) / found.stored_nbytes >= 4.28

    @pytest.mark.parametrize(("config", "target"), [("int2", 7.0), ("int2-asymmetric", 6.3)])
    def test_int2_compression_ratio_target(self, measured: Measurements, config: str, target: float) -> None:
        assert measured[config].compression >= target

    def test_compression_ratio_comparison(self, targets: Targets, measured: Measurements) -> None:
        ratios = {config: measured[config].compression for config in CONFIGS}
        assert ratios["int2"] > ratios["int2-asymmetric"] > ratios["int4"] > ratios["int8"]
        for config, ratio in ratios.items():
            # The report counts the parts alone; index and commits are within a few percent.
            reported = report_of(targets[config])["totals"]["compression_vs_fp16"]
            assert reported == pytest.approx(ratio, rel=0.02)
            assert reported >= ratio


class TestAccuracyValidation:
    def test_int8_accuracy_target(self, measured: Measurements) -> None:
        found = measured["int8"]
        assert found.mean_cosine >= 0.9999
        assert min(found.cosines.values()) >= 0.999

    def test_int4_accuracy_target(self, measured: Measurements) -> None:
        assert measured["int4"].mean_cosine >= 0.9948

    @pytest.mark.parametrize(("config", "target"), [("int2", 0.926), ("int2-asymmetric", 0.936)])
    def test_int2_accuracy_target(self, measured: Measurements, config: str, target: float) -> None:
        assert measured[config].mean_cosine >= target

    @pytest.mark.parametrize("config", CONFIGS)
    def test_layer_wise_accuracy_distribution(
        self, targets: Targets, weights: dict[str, np.ndarray], measured: Measurements, config: str
    ) -> None:
        cosines = measured[config].cosines
        buckets = report_of(targets[config])["distribution"]
        counted = [
            sum(low <= c and (c < high or high >= 1) for c in cosines.values())
            for low, high in ((bucket["low"], bucket["high"]) for bucket in buckets)
        ]
        assert [bucket["layers"] for bucket in buckets] == counted
        assert sum(counted) == len(cosines)
        rows = pq.read_table(targets[config] / "report" / "layers.parquet").to_pylist()
        reported = {row["layer_name"]: row for row in rows}
        assert set(reported) == set(weights)
        for name, layer in measured[config].layers.items():
            if name in cosines:
                errors = weights[name].astype(np.float64) - layer.values
                assert reported[name]["cosine"] == pytest.approx(cosines[name], abs=1e-6)
                assert reported[name]["mse"] == pytest.approx(np.mean(errors**2), rel=1e-3)
                assert reported[name]["max_error"] == pytest.approx(np.abs(errors).max(), rel=1e-3)


class TestSchemaCompatibility:
    def test_v1_schema_read(self, tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
        some = {name: weights[name] for name in list(weights)[:20]}
        for metadata in ({"arrowquant.schema_version": "1"}, None):
            path = tmp_path / f"{'with' if metadata else 'without'}-version.parquet"
            write_v1(path, some, metadata)
            with WeightLoader(str(path)) as loader:
                assert sorted(loader.keys()) == sorted(some)
                for name, tensor in loader:
                    np.testing.assert_array_equal(tensor.numpy(), some[name])
            target = tmp_path / f"{path.stem}-int8"
            ArrowQuantizer(QuantizationConfig("int8")).quantize(str(path), str(target))
            decoded = read_layers(target)
            assert set(decoded) == set(some)
            for name, layer in decoded.items():
                if layer.quant_type == "int8":
                    assert cosine(layer.values, some[name]) > 0.999

    @pytest.mark.parametrize("config", CONFIGS)
    def test_v2_schema_write(self, targets: Targets, config: str) -> None:
        parts = _files(targets[config] / "weights")
        assert parts
        for part in parts:
            schema = pq.read_schema(part)
            assert schema.metadata[b"arrowquant.schema_version"] == b"2"
            assert schema.names == list(V2_COLUMNS)
            for column, types in V2_COLUMNS.items():
                assert schema.field(column).type in types, column

    def test_v2_to_v1_compatibility(self, int8: Path, tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
        dataset = ds.dataset(int8 / "weights", format="parquet", partitioning="hive")
        assert dataset.schema.names[: len(V1_COLUMNS)] == list(V1_COLUMNS)
        rows = dataset.to_table(columns=list(V1_COLUMNS)).to_pylist()
        assert {row["layer_name"]: tuple(row["shape"]) for row in rows} == {
            name: w.shape for name, w in weights.items()
        }
        for row in rows:
            assert row["num_params"] == math.prod(row["shape"])
            assert row["dtype"] == str(weights[row["layer_name"]].dtype)
        # A row that is stored as `none` means in V1 what it means in V2: raw values in the source's dtype.
        config = QuantizationConfig("int8", mixed_precision_layers=["*"], method="rtn")
        source, target = tmp_path / "ids.parquet", tmp_path / "kept"
        ids: dict[str, np.ndarray] = {
            "ids": np.arange(12).reshape(3, 4),
            "half": np.ones((2, 3), np.float16),
        }
        write_v1(source, ids)
        ArrowQuantizer(config).quantize(str(source), str(target))
        for row in read_table(target).select(list(V1_COLUMNS)).to_pylist():
            values = np.frombuffer(row["data"], row["dtype"]).reshape(row["shape"])
            np.testing.assert_array_equal(values, ids[row["layer_name"]])


class TestPerformanceBenchmarks:
    """Prints (pytest -s) and checks sanity; `python -m tests.benchmarks` measures."""

    def test_quantization_speed(self, int8: Path, weights: dict[str, np.ndarray]) -> None:
        report = report_of(int8)
        timing, params = report["timing"], sum(w.size for w in weights.values())
        worked = sum(timing["phases"].values())
        print(
            f"\nint8: {params / timing['wall_seconds'] / 1e6:.0f} Mparam/s over {timing['wall_seconds']:.2f} s, "
            + ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in timing["phases"].items())
        )
        assert timing["params_per_second"] == pytest.approx(params / timing["wall_seconds"], rel=0.01)
        assert 0 < worked <= timing["wall_seconds"] * report["run"]["workers"] * 1.1

    def test_weight_loading_speed(self, int8: Path, weights: dict[str, np.ndarray]) -> None:
        start = time.perf_counter()
        with WeightLoader(str(int8)) as loader:
            params = sum(tensor.numel() for _, tensor in loader)
            seconds, stats = time.perf_counter() - start, loader.stats
        print(
            f"\nint8 → float32: {params / seconds / 1e6:.0f} Mparam/s, {stats.nbytes_read / MIB:.0f} MiB read"
        )
        assert params == sum(w.size for w in weights.values())
        stored = sum(f.stat().st_size for f in _files(int8 / "weights"))
        assert 0.9 * stored < stats.nbytes_read < 1.2 * stored  # gaps are read across
        assert stats.seconds <= seconds

    def test_peak_memory(self, int8: Path, weights: dict[str, np.ndarray]) -> None:
        peak = report_of(int8)["timing"]["peak_memory_nbytes"]
        with WeightLoader(str(int8), memory_budget="128MiB") as loader:
            for _ in loader:
                pass
            in_flight = loader.stats.peak_nbytes
        print(f"\nquantize: {peak / MIB:.0f} MiB resident; load: {in_flight / MIB:.0f} MiB in flight")
        largest = max(w.nbytes for w in weights.values())
        assert largest < peak < 64 << 30
        assert largest < in_flight <= 128 * MIB
