"""Statistics computed with plain transformers: hooks on every linear layer, one text at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoTokenizer
from transformers.pytorch_utils import Conv1D


def read(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder of statistics, read by the safetensors package."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        assert not tensors.keys() & found.keys()
        found.update(tensors)
    return found


@contextmanager
def hooked(model: torch.nn.Module) -> Iterator[dict[str, list[torch.Tensor]]]:
    """{name of a Linear's or Embedding's weight: its inputs, in the order of the calls}."""
    seen: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding | Conv1D):

            def note(_: Any, args: Any, name: str = name) -> None:
                seen[f"{name}.weight"].append(args[0].detach().clone())

            handles.append(module.register_forward_pre_hook(note))
    yield seen
    for handle in handles:
        handle.remove()


def inputs_of(model: torch.nn.Module, folder: Path, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """{weight: float64 [tokens, in]} over all texts, which run one by one and so without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    with torch.no_grad(), hooked(model) as seen:
        for text in texts:
            model(**tokenizer(text, return_tensors="pt"))
            for name, values in seen.items():
                for value in values:
                    wide = (
                        value.reshape(-1)
                        if not value.is_floating_point()
                        else value.reshape(-1, value.shape[-1])
                    )
                    found[name].append(wide.double().numpy())
            seen.clear()
    return {name: np.concatenate(values) for name, values in found.items()}


def mean_product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    product: np.ndarray = first.T @ second / len(first)
    return product
