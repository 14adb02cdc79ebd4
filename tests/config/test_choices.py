"""Settings with a fixed set of words: a type checker refuses the words that the config refuses."""

from __future__ import annotations

from typing import get_args

import pytest

from arrowquant_dist import ArrowQuantError, ExportOptions, QuantizationConfig, RunConfig, load_model
from arrowquant_dist.config import QUANT_TYPES, LayerOverride, QuantType, ScaleDtypeName
from arrowquant_dist.config.spec import STORED_SCALES


def test_types_and_what_is_allowed_at_run_time_are_the_same_words() -> None:
    assert get_args(QuantType) == QUANT_TYPES
    assert get_args(ScaleDtypeName) == STORED_SCALES


def test_other_words_are_refused_by_the_type_checker_and_at_run_time() -> None:
    """mypy ends with an error where one of these is right: an ignore without use is one, by pyproject.toml."""
    with pytest.raises(ArrowQuantError, match="quant_type"):
        QuantizationConfig("int5")  # type: ignore[arg-type]
    with pytest.raises(ArrowQuantError, match="method"):
        QuantizationConfig(method="awq")  # type: ignore[arg-type]
    with pytest.raises(ArrowQuantError, match="scale_dtype"):
        QuantizationConfig(scale_dtype="float16")  # type: ignore[arg-type]
    with pytest.raises(ArrowQuantError, match="non_finite"):
        QuantizationConfig(non_finite="drop")  # type: ignore[arg-type]
    with pytest.raises(ArrowQuantError, match="engine"):
        RunConfig(engine="dask")  # type: ignore[arg-type]
    with pytest.raises(ArrowQuantError, match="compression"):
        RunConfig(compression="lz4")  # type: ignore[arg-type]
    with pytest.raises(ArrowQuantError, match="direct_writes"):
        RunConfig(direct_writes="always")  # type: ignore[arg-type]
    with pytest.raises(ArrowQuantError, match="format"):
        ExportOptions("onnx")  # type: ignore[arg-type]
    with pytest.raises(ArrowQuantError, match="activations"):
        ExportOptions("compressed-tensors", "fp8")  # type: ignore[arg-type]
    with pytest.raises(ArrowQuantError, match="quant_type: must be one of int8, int4, int3, int2, fp16"):
        LayerOverride("x", "int5")  # type: ignore[arg-type]
    with pytest.raises(ArrowQuantError, match="method: must be one of rtn, mse, gptq"):
        LayerOverride("x", method="awq")  # type: ignore[arg-type]
    with pytest.raises(ArrowQuantError, match="choose None or 'int8'"):
        load_model("nowhere", object, codes=True, activations="fp8")  # type: ignore[arg-type]
