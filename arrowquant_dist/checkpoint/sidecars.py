"""Makes a target's version of the files that are copied from its source. Which files these are: folder/sidecars.py."""

from __future__ import annotations

import json

from arrowquant_dist.checkpoint.quantized.model_config import MLX_KEY, QUANTIZATION_KEYS, is_mlx, places_in
from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.strict_json import parse_json

_CONFIG = "config.json"
_PARAMS, _MISTRAL_KEY = "params.json", "quantization"


def published(path: str, data: bytes, checkpoint: Checkpoint) -> bytes:
    """The content of a sidecar at the target: unchanged, except for config.json, or Mistral's params.json, in a
    folder whose codes were decoded.

    These lose what they say about how the weights were quantized, since their readers would look for scales that are
    not there.
    """
    folder, _, name = path.rpartition("/")
    prefix = f"{folder.replace('/', '.')}." if folder else ""
    if name not in (_CONFIG, _PARAMS) or not any(d.startswith(prefix) for d in checkpoint.decoded):
        return data
    if name == _PARAMS:
        return _without_mistral_s(data)
    config = json.loads(data)
    for place in places_in(config):
        for key in QUANTIZATION_KEYS:
            place.pop(key, None)
        if is_mlx(place.get(MLX_KEY)):
            del place[MLX_KEY]
    return json.dumps(config, indent=2, ensure_ascii=False).encode()


def _without_mistral_s(data: bytes) -> bytes:
    """A params.json without its quantization. It has not been parsed before, and may belong to another program."""
    try:
        params = parse_json(data)
    except ValueError:
        return data
    if not isinstance(params, dict) or _MISTRAL_KEY not in params:
        return data
    rest = {key: value for key, value in params.items() if key != _MISTRAL_KEY}
    return json.dumps(rest, indent=2, ensure_ascii=False).encode()
