"""Random settings of a run, and their expected effect on a layer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

_WORDS = ["embed", "lm_head", "*.weight", "/q_proj|up_proj/", "layers.0", "experts", "*a*", "名前"]


def random_settings(random_: random.Random, names: Sequence[str]) -> dict[str, Any]:
    """The content of a config file. names: names of the source's layers, so that some patterns match."""
    settings: dict[str, Any] = {
        "quant_type": random_.choice(["int8", "int4", "int3", "int2", "int8", "int4", "fp16"]),
        "per_channel": random_.random() < 0.4,
        "group_size": random_.choice([0, 1, 2, 3, 7, 8, 32, 128, 4096]),
        "symmetric": random_.random() < 0.5,
        "non_finite": random_.choice(["error", "error", "keep"]),
        "run": {
            "block_bytes": random_.choice([65536, 65536, 100_000, 1 << 20]),
            "shard_bytes": random_.choice([65536, 200_000, 1 << 20]),
            "compression": random_.choice(["zstd", "none"]),
            "workers": random_.randrange(1, 4),
            "engine": "inline",
        },
    }
    if random_.random() < 0.6:
        settings["method"] = random_.choice(["rtn", "mse"])
    if not settings["symmetric"]:
        settings["integer_zero_points"] = random_.random() < 0.4
    if random_.random() < 0.3:
        settings["mixed_precision_layers"] = random_.sample(_WORDS, random_.randrange(1, 4))
    if random_.random() < 0.2:
        settings["overrides"] = [_override(random_, names) for _ in range(random_.randrange(1, 3))]
    if random_.random() < 0.05:
        settings["row_dims"] = {random_.choice(["*", "experts"]): random_.randrange(1, 4)}
    return settings


def _override(random_: random.Random, names: Sequence[str]) -> dict[str, Any]:
    name = random_.choice(names) if names else ""
    layers = random_.choice(["*", "*.weight", name, "/./"]) or "*"
    more: dict[str, Any] = random_.choice(
        [
            {"quant_type": random_.choice(["int8", "int4", "int3", "int2", "fp16"])},
            {"group_size": random_.choice([0, 2, 5, 64])},
            {"quant_type": "int4", "group_size": 16, "symmetric": random_.random() < 0.5},
            {"method": random_.choice(["rtn", "mse"])},
            {"row_dims": 2},
        ]
    )
    return {"layers": layers, **more}


def says_nothing_of_single_layers(settings: dict[str, Any]) -> bool:
    return not settings.keys() & {"mixed_precision_layers", "overrides", "row_dims"}
