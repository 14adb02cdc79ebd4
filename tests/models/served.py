"""A model as a source, its dataset, and its decoded weights as a folder that from_pretrained opens."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, WeightLoader
from arrowquant_dist.modules import QuantEmbedding, QuantLinear


@dataclass(frozen=True, slots=True)
class Served:
    """Folders of one model.

    source: folder that save_pretrained wrote. target: its dataset. decoded: a copy of the source's folder with the
    decoded weights, under the source's names, in one safetensors file.
    """

    source: Path
    target: Path
    decoded: Path


def serve(model: Any, folder: Path, config: QuantizationConfig | None = None) -> Served:
    """Saves a model, quantizes it (to int8 unless `config` says otherwise), and writes the decoded weights."""
    model.save_pretrained(folder / "source")
    return serve_saved(folder, config)


def serve_saved(folder: Path, config: QuantizationConfig | None = None) -> Served:
    """Like `serve`, for a model that was saved to `folder`/source."""
    served = Served(folder / "source", folder / "target", folder / "decoded")
    quantize(served.source, served.target, config)
    write_decoded(served)
    return served


def quantize(source: Path, target: Path, config: QuantizationConfig | None = None) -> None:
    ArrowQuantizer(config or QuantizationConfig("int8")).quantize(source, target)


def write_decoded(served: Served) -> None:
    skipped = shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json")
    shutil.copytree(served.source, served.decoded, ignore=skipped)
    with WeightLoader(served.target) as loader:
        tensors = {name: tensor.contiguous() for name, tensor in loader}
    save_file(tensors, served.decoded / "model.safetensors", {"format": "pt"})


def differences(ours: torch.nn.Module, theirs: torch.nn.Module) -> list[str]:
    """The differences of two models in classes, modes, ties, and any bit of any parameter or buffer."""
    found = [] if type(ours) is type(theirs) else [f"classes {type(ours)} and {type(theirs)}"]
    if ours.training != theirs.training:
        found.append("modes")
    mine, other = _tensors(ours), _tensors(theirs)
    found += [f"only in one: {name}" for name in mine.keys() ^ other.keys()]
    for name in mine.keys() & other.keys():
        if not _same(mine[name], other[name]):
            found.append(f"values of {name}")
        if isinstance(mine[name], torch.nn.Parameter) != isinstance(other[name], torch.nn.Parameter):
            found.append(f"kind of {name}")
        if mine[name].requires_grad != other[name].requires_grad:
            found.append(f"requires_grad of {name}")
    if _ties(mine) != _ties(other):
        found.append("ties")
    return sorted(found)


def coded_modules(model: torch.nn.Module) -> dict[str, QuantLinear | QuantEmbedding]:
    """The modules whose weights are codes, by each of their names."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if isinstance(module, QuantLinear | QuantEmbedding)}


def coded_differences(coded: torch.nn.Module, plain: torch.nn.Module) -> list[str]:
    """The differences of a model with codes and the decoded one, in any bit of any tensor once codes are decoded."""
    packed = coded_modules(coded)
    mine = {
        name: tensor
        for name, tensor in _tensors(coded).items()
        if not any(name.startswith(f"{module}.weight.") for module in packed)
    }
    mine |= {f"{name}.weight": module.weight.dequantize() for name, module in packed.items()}
    other = _tensors(plain)
    found = [f"only in one: {name}" for name in mine.keys() ^ other.keys()]
    found += [
        f"values of {name}" for name in mine.keys() & other.keys() if not _alike(mine[name], other[name])
    ]
    modes = {name: module.training for name, module in plain.named_modules(remove_duplicate=False)}
    found += [f"mode of {name}" for name, module in packed.items() if module.training != modes[name]]
    return sorted(found)


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the bits are the same; one may be a parameter and the other not."""
    return _same(one.detach(), other.detach())


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, including buffers that are not persistent."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return found | dict(model.named_buffers(remove_duplicate=False))


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if type(one) is not type(other) or one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*bits)


def _ties(tensors: dict[str, torch.Tensor]) -> set[frozenset[str]]:
    groups: dict[int, set[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(id(tensor), set()).add(name)
    return {frozenset(names) for names in groups.values() if len(names) > 1}
