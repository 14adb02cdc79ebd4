"""Made-up layers for pages and pictures."""

from __future__ import annotations

from dataclasses import replace

from arrowquant_dist.report.layer_rows import LayerRow

QUERY = LayerRow(
    layer_name="model.layers.0.self_attn.q_proj.weight",
    layer_type="attention",
    shape=(64, 128),
    dtype="float32",
    quant_type="int4",
    method="mse",
    quant_axis=0,
    group_size=128,
    params=8192,
    source_nbytes=32768,
    stored_nbytes=4352,
    kept_reason=None,
    cosine=0.995,
    mse=2.5e-5,
    sqnr_db=20.0,
    max_error=0.05,
)
ENERGY = 2.5e-3  # mean square of the original values
NORM = replace(
    QUERY,
    layer_name="model.norm.weight",
    layer_type="norm",
    shape=(128,),
    quant_type="none",
    method="none",
    quant_axis=-1,
    group_size=0,
    params=128,
    stored_nbytes=500,
    kept_reason="1-D",
    cosine=1.0,
    mse=0.0,
    sqnr_db=None,
    max_error=0.0,
)


def layer(name: str, sqnr_db: float | None = 20.0, **other: object) -> LayerRow:
    """A quantized layer of this name, whose original weights have the same energy as QUERY's."""
    mse = ENERGY * 10 ** (-sqnr_db / 10) if sqnr_db is not None else QUERY.mse
    return replace(QUERY, **{"layer_name": name, "sqnr_db": sqnr_db, "mse": mse, **other})  # type: ignore[arg-type]
