"""compressed-tensors' `quantization_config`: how the weights of each module are quantized."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from arrowquant_dist.checkpoint.quantized.linear_regex import begins
from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig
from arrowquant_dist.encodings.rows import Block
from arrowquant_dist.errors import InvalidCheckpoint

METHOD = "compressed-tensors"
_DENSE, _MIXED = "dense", "mixed-precision"
_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    _DENSE,
)
_ONLINE = ("input", "output", "k_cache", "q_attn")  # locations of transforms that are applied at run time
_NOT_DONE = "which weights alone can't do"
_REGEX = "re:"
_MAX_TARGET = 1024
_INSTEAD = (
    "decompress the model first (transformers loads it with run_compressed=False, then save_pretrained), or use "
    "the model that it was made from"
)


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights of some modules are quantized.

    targets: names of modules, `re:` and a regex that matches their beginning, or classes (which checkpoints do not
    record). blocks: (rows, columns) that may share a scale, besides a tensor and a row. activations: what the
    modules' activations are converted to while the model runs, such as `int8`; "" if they are not.
    """

    targets: tuple[str, ...]
    bits: int
    symmetric: bool
    blocks: tuple[Block, ...]
    activations: str = ""

    @property
    def has_class(self) -> bool:
        """Whether a target may be a class, such as `Linear`."""
        return any(not target.startswith(_REGEX) and "." not in target for target in self.targets)

    def names(self, module: str) -> bool:
        """Whether a target names the module itself, and not only its class."""
        return any(
            begins(target.removeprefix(_REGEX), module) if target.startswith(_REGEX) else target == module
            for target in self.targets
        )


@dataclass(frozen=True, slots=True)
class Schemes:
    """The schemes of a model; none if it is not compressed-tensors'."""

    all: tuple[Scheme, ...] = ()

    def of(self, module: str) -> list[Scheme]:
        """The schemes that a module may have: those that name it before those that may name its class."""
        if len(self.all) == 1:
            return list(self.all)
        return sorted(self.all, key=lambda scheme: not scheme.names(module))

    def activations(self, module: str) -> str:
        """As in Scheme, for the scheme of the module: the first that names it, else the first with a class."""
        named = [scheme for scheme in self.all if scheme.names(module)]
        found = named or [scheme for scheme in self.all if scheme.has_class]
        return found[0].activations if found else ""

    @property
    def blocks(self) -> list[Block]:
        return [block for scheme in self.all for block in scheme.blocks]


def read_schemes(config: ModelConfig) -> Schemes:
    """The schemes in the config. Raises InvalidCheckpoint, naming the config, for a format that can't be decoded or
    an invalid config."""
    given = config.quantization
    is_named = config.method == METHOD
    if not is_named and (
        config.method or "config_groups" not in given
    ):  # ModelOpt has config_groups of its own
        return Schemes()
    _refuse_transforms(config)
    sparsity = given.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", _DENSE) != _DENSE:
        _refuse_format(sparsity["format"], config)
    groups = given.get("config_groups")
    if not isinstance(groups, dict):
        _refuse("its quantization_config has no config_groups; download it again", config)
    whole = given.get("format", _DENSE)
    if whole not in (*_FORMATS, _MIXED):
        _refuse_format(whole, config)
    schemes = [_scheme(name, group, config) for name, group in groups.items()]
    return Schemes(tuple(scheme for scheme in schemes if scheme is not None))


def _refuse_transforms(config: ModelConfig) -> None:
    """Refuses rotations that the model undoes at run time: its weights are not those of the full-precision release."""
    transforms = config.quantization.get("transform_config")
    text = json.dumps(transforms) if transforms else ""
    if any(f'"location": "{place}"' in text for place in _ONLINE):
        _refuse(
            f"its transform_config rotates activations while the model runs, {_NOT_DONE}; {_INSTEAD}", config
        )


def _scheme(name: str, group: Any, config: ModelConfig) -> Scheme | None:
    """The scheme of a group; None for a group that does not quantize weights."""
    if not isinstance(group, dict):
        _refuse(f"config_groups' {name} is not an object with targets and weights; write it out", config)
    own = group.get("format")
    if own is not None and own not in _FORMATS:
        _refuse_format(own, config)
    weights, targets = group.get("weights"), group.get("targets")
    if weights is None:
        return None
    if not isinstance(weights, dict) or not isinstance(targets, list):
        _refuse(f"config_groups' {name} is not an object with targets and weights; download it again", config)
    bits, symmetric = weights.get("num_bits", 8), weights.get("symmetric", True)
    if type(bits) is not int or not isinstance(symmetric, bool):
        _refuse(
            f"config_groups' {name} has num_bits {bits!r} and symmetric {symmetric!r}; correct it", config
        )
    named = tuple(_target(t, config) for t in targets)
    return Scheme(named, bits, symmetric, _blocks(name, weights, config), _activations(group))


def _activations(group: Mapping[str, Any]) -> str:
    found = group.get("input_activations")
    if not isinstance(found, dict):
        return ""
    how = "" if found.get("dynamic") is True else " with fixed scales"
    return f"{found.get('type', 'int')}{found.get('num_bits', 8)}{how}"


def _blocks(name: str, weights: Mapping[str, Any], config: ModelConfig) -> tuple[Block, ...]:
    group_size, block = weights.get("group_size"), weights.get("block_structure")
    if isinstance(block, str):  # "128x128", as older versions wrote it
        block = [int(size) if size.isdecimal() else 0 for size in block.split("x")]
    sizes = [block] if block is not None else []
    if group_size is not None and group_size != -1:
        sizes.append([1, group_size])
    for size in sizes:
        if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
            _refuse(
                f"config_groups' {name} has groups or blocks of the invalid size {size!r}; correct it", config
            )
    return tuple((size[0], size[1]) for size in sizes)


def _target(target: Any, config: ModelConfig) -> str:
    if not isinstance(target, str) or len(target) > _MAX_TARGET:
        _refuse(f"the target {str(target)[:100]!r} is not a valid name; correct config_groups", config)
    if target.startswith(_REGEX):
        try:
            begins(target.removeprefix(_REGEX), "")
        except ValueError as error:
            message = f"the target {target[:100]!r} is not a valid or supported regex: it {error}"
            raise InvalidCheckpoint(f"{message}; correct config_groups", uri=config.uri) from error
    return target


def _refuse_format(name: Any, config: ModelConfig) -> NoReturn:
    known = ", ".join(_FORMATS)
    _refuse(f"compressed-tensors' format {name!r} can't be decoded, only {known}; {_INSTEAD}", config)


def _refuse(message: str, config: ModelConfig) -> NoReturn:
    raise InvalidCheckpoint(message, uri=config.uri)
