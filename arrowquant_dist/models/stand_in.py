"""A model's folder with everything but its weights: safetensors files of the right names, shapes and dtypes, and holes
where the values would be.

sentence-transformers opens nothing but folders with weights. Holes take no disk, and no memory either: they are mapped,
and nobody looks at their values before the real ones are in their place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dtypes import DTYPES


def write_holes(path: Path, layers: Mapping[str, StoredLayer]) -> None:
    """A safetensors file at `path` with a tensor for each of `layers`, all of it zeros that are stored nowhere."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, layer in layers.items():
        dtype = DTYPES[layer.dtype]
        nbytes = math.prod(layer.shape) * dtype.itemsize
        header[name] = {
            "dtype": dtype.safetensors,
            "shape": [*layer.shape],
            "data_offsets": [end, end + nbytes],
        }
        end += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
