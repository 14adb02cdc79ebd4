"""Reads what config.json, or other tools' files in its place, say about a quantized checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.errors import InvalidCheckpoint, NotFound
from arrowquant_dist.storage.base import Store
from arrowquant_dist.strict_json import parse_json

QUANTIZATION_KEYS = ("quantization_config", "compression_config")
# Files of AutoGPTQ, AutoAWQ and ModelOpt that replace quantization_config in config.json: {file: quant_method}.
QUANTIZATION_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
MLX_KEY = "quantization"
# Keys under which models of text and images have the text model's settings.
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
_CONFIG = "config.json"
FLOATS = ("bfloat16", "float16", "float32")
_MAX_NBYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The settings of a model that matter for decoding. own_dtype: the model's `dtype` (`torch_dtype`), None if it is
    not in FLOATS. quantization: the model's `quantization_config`, or that in a file of QUANTIZATION_FILES; {} if it
    has none. mlx: its `quantization` if that is MLX's, else {}. uri: of the file that has these."""

    uri: str
    own_dtype: str | None = None
    quantization: Mapping[str, Any] = field(default_factory=dict)
    mlx: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """The dtype that weights are decoded to."""
        return self.dtype_or("bfloat16")

    def dtype_or(self, silent: str) -> str:
        """The same, for codes whose other tensors tell the model's dtype if the config does not. silent: that dtype."""
        return self.own_dtype or silent

    @property
    def method(self) -> str:
        return str(self.quantization.get("quant_method", ""))


def read_model_config(folder: Store) -> ModelConfig:
    """The config of the model in `folder`; defaults without config.json. Raises InvalidCheckpoint for invalid JSON."""
    found = _model_config(_read(folder, _CONFIG) or {}, folder.url(_CONFIG))
    if found.quantization or found.mlx:
        return found
    for name, method in QUANTIZATION_FILES.items():
        given = _read(folder, name)
        if given is not None:
            return replace(found, uri=folder.url(name), quantization={"quant_method": method, **given})
    return found


def is_mlx(settings: Any) -> bool:
    """Whether these are the settings that MLX writes as `quantization` and again as `quantization_config`."""
    is_own = isinstance(settings, dict) and "quant_method" not in settings
    return is_own and "group_size" in settings and ("bits" in settings or "mode" in settings)


def _read(folder: Store, name: str) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no such file."""
    uri = folder.url(name)
    try:
        if folder.size(name) > _MAX_NBYTES:
            raise InvalidCheckpoint(
                f"larger than {rounded_size(_MAX_NBYTES)}; this is not a model's config", uri=uri
            )
        config = parse_json(folder.read(name))
    except NotFound:
        return None
    except ValueError as error:
        message = (
            f"not readable JSON ({error}), but it has to say how the weights are quantized; download it again"
        )
        raise InvalidCheckpoint(message, uri=uri) from error
    if not isinstance(config, dict):
        raise InvalidCheckpoint("not an object of settings; download it again", uri=uri)
    return config


def places_in(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The config itself, then those of its parts (`text_config`, `thinker_config.text_config` …), the text model's
    first: any of them may say how the weights are quantized."""
    found = [config]
    for place in found:
        parts = [
            key
            for key, value in place.items()
            if isinstance(value, dict) and key not in (*QUANTIZATION_KEYS, MLX_KEY)
        ]
        found += [place[key] for key in sorted(parts, key=lambda key: key not in _TEXT_PARTS)]
    return found


def _model_config(config: dict[str, Any], uri: str) -> ModelConfig:
    places = places_in(config)
    named = [
        str(place.get(key)).removeprefix("torch.")
        for place in _of_text(config)
        for key in ("dtype", "torch_dtype")
    ]
    found = [place[key] for place in places for key in QUANTIZATION_KEYS if isinstance(place.get(key), dict)]
    mlx = [place[key] for place in places for key in (MLX_KEY, *QUANTIZATION_KEYS) if is_mlx(place.get(key))]
    return ModelConfig(
        uri,
        next((name for name in named if name in FLOATS), None),
        found[0] if found else {},
        mlx[0] if mlx else {},
    )


def _of_text(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config and, for a model of text and images, the text model's configs in it: only these give a dtype for the
    whole model."""
    place: Any = config
    while isinstance(place, dict):
        yield place
        place = next((place[key] for key in _TEXT_PARTS if isinstance(place.get(key), dict)), None)
