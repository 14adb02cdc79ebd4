"""What a target has of the files that are copied from its source. Which these are: folder/sidecars.py."""

from __future__ import annotations

import json

from arrowquant_dist.checkpoint.quantized.model_config import MLX_KEY, QUANTIZATION_KEYS, is_mlx
from arrowquant_dist.checkpoint.table import Checkpoint

_CONFIG = "config.json"


def published(path: str, data: bytes, checkpoint: Checkpoint) -> bytes:
    """What a target has of a sidecar: the same bytes, but for the config.json of a folder whose codes were decoded.

    That no longer says how the weights were quantized: its reader would look for scales that are not there.
    """
    folder, _, name = path.rpartition("/")
    prefix = f"{folder.replace('/', '.')}." if folder else ""
    if name != _CONFIG or not any(decoded.startswith(prefix) for decoded in checkpoint.decoded):
        return data
    config = json.loads(data)
    inner = config.get("text_config")
    for place in (config, inner) if isinstance(inner, dict) else (config,):
        for key in QUANTIZATION_KEYS:
            place.pop(key, None)
        if is_mlx(place.get(MLX_KEY)):
            del place[MLX_KEY]
    return json.dumps(config, indent=2, ensure_ascii=False).encode()
