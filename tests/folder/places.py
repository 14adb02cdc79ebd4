"""Source folders, on local disk and in memory, made by other means than the package."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import torch
from safetensors.torch import save

from arrowquant_dist.checkpoint.open import open_checkpoint
from tests.checkpoint.checkpoint_files import read_all

Files = Mapping[str, bytes]
Put = Callable[[Files], str]


def put_local(folder: Path, files: Files) -> str:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(folder)


def put_in_memory(files: Files) -> str:
    root = f"memory://{uuid.uuid4().hex}"
    memory = fsspec.filesystem("memory")
    for name, data in files.items():
        memory.pipe_file(f"{root}/{name}", data)
    return root


def safetensors_of(*names: str, value: float = 1.0) -> bytes:
    """A safetensors file with float32 tensors [2, 2] full of `value`."""
    data: bytes = save({name: torch.full((2, 2), float(value)) for name in names})
    return data


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def bin_of(*names: str, value: float = 1.0) -> bytes:
    return pickled({name: torch.full((2, 2), float(value)) for name in names})


def index_of(**weight_map: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": weight_map}).encode()


def json_of(value: Any) -> bytes:
    return json.dumps(value).encode()


def values_of(uri: str) -> dict[str, float]:
    """{name: the one value that its tensor is full of}, including tied names."""
    checkpoint = open_checkpoint(uri)
    stored = {
        name: torch.frombuffer(bytearray(data), dtype=torch.float32)
        for name, data in read_all(checkpoint).items()
    }
    assert all(bool((tensor == tensor[0]).all()) for tensor in stored.values())
    values = {name: float(tensor[0]) for name, tensor in stored.items()}
    return values | {name: values[first] for name, first in checkpoint.aliases.items()}


def notes_of(uri: str) -> str:
    return "\n".join(open_checkpoint(uri).notes)
