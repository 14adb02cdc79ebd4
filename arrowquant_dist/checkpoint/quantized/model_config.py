"""What config.json says of a quantized checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from arrowquant_dist.errors import InvalidCheckpoint, NotFound
from arrowquant_dist.storage.base import Store

QUANTIZATION_KEYS = ("quantization_config", "compression_config")
_DTYPES = ("bfloat16", "float16", "float32")
_MAX_NBYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """dtype: what weights are decoded to: the model's `dtype` (`torch_dtype`) where that is bfloat16, float16 or
    float32, else bfloat16. quantization: the model's `quantization_config`, {} where it has none.
    uri: of config.json.
    """

    uri: str
    dtype: str = "bfloat16"
    quantization: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return str(self.quantization.get("quant_method", ""))


def read_model_config(folder: Store) -> ModelConfig:
    """Of the model in `folder`; defaults where it has no config.json. InvalidCheckpoint for one that is no JSON."""
    uri = folder.url("config.json")
    try:
        if folder.size("config.json") > _MAX_NBYTES:
            raise InvalidCheckpoint(f"larger than {_MAX_NBYTES} bytes; this is no model's config", uri=uri)
        config = json.loads(folder.read("config.json").decode("utf-8"))
    except NotFound:
        return ModelConfig(uri)
    except (ValueError, RecursionError) as error:
        message = f"not readable JSON ({error}), and it says how the weights are quantized; download it again"
        raise InvalidCheckpoint(message, uri=uri) from error
    if not isinstance(config, dict):
        raise InvalidCheckpoint("not an object of settings; download it again", uri=uri)
    return _model_config(config, uri)


def _model_config(config: Mapping[str, Any], uri: str) -> ModelConfig:
    """Models of text and images have the text model's settings under `text_config`."""
    inner = config.get("text_config")
    places = [config, inner] if isinstance(inner, dict) else [config]
    named = [
        str(place.get(key)).removeprefix("torch.") for place in places for key in ("dtype", "torch_dtype")
    ]
    found = [place[key] for place in places for key in QUANTIZATION_KEYS if isinstance(place.get(key), dict)]
    return ModelConfig(
        uri,
        next((name for name in named if name in _DTYPES), "bfloat16"),
        found[0] if found else {},
    )
