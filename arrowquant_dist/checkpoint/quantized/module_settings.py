"""What a model's config says about the codes of one module: bits and group size, which a module may have of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from arrowquant_dist.checkpoint.quantized.linear_regex import begins, occurs
from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig
from arrowquant_dist.errors import InvalidCheckpoint

WHOLE_ROW = -1  # as a group size

_BITS = ("bits", "w_bit")
_GROUP_SIZE = ("group_size", "q_group_size")
_NOT, _ALSO = "-:", "+:"  # GPTQModel's `dynamic` marks modules that are not quantized, and those that are
_FULL_BITS = 16  # bits of modules that are not quantized
_NOT_QUANTIZED = {_BITS[0]: _FULL_BITS}


@dataclass(frozen=True, slots=True)
class ModuleSettings:
    """Settings of a module. bits, group_size: None if the config does not say. group_size: inputs that share a scale,
    or WHOLE_ROW. is_quantized: False if the config says that the module is not."""

    bits: int | None
    group_size: int | None
    is_quantized: bool = True


def settings_of(config: ModelConfig, module: str) -> ModuleSettings:
    """The settings of a module. Raises InvalidCheckpoint, naming the config, for invalid numbers."""
    given = config.quantization
    own = _dynamic(given.get("dynamic"), module, config)
    if own is None:
        own = _extra(given.get("extra_config"), module, config)
    bits = _number(own or {}, given, _BITS, config)
    group_size = _number(own or {}, given, _GROUP_SIZE, config)
    if bits is not None and bits >= _FULL_BITS:
        return ModuleSettings(None, None, is_quantized=False)
    if group_size is not None and group_size < 1 and group_size != WHOLE_ROW:
        _refuse(f"its group_size {group_size} is neither positive nor -1", config)
    return ModuleSettings(bits, group_size)


def _dynamic(rules: Any, module: str, config: ModelConfig) -> Mapping[str, Any] | None:
    """The settings in GPTQModel's {regex that begins the names of modules: their settings}; the first match counts."""
    for pattern, own in _rules("dynamic", rules, config).items():
        name = pattern.removeprefix(_NOT).removeprefix(_ALSO)
        if name == module or _matches(begins, name, module, config):
            return _NOT_QUANTIZED if pattern.startswith(_NOT) else _own("dynamic", own, config)
    return None


def _extra(rules: Any, module: str, config: ModelConfig) -> Mapping[str, Any] | None:
    """The settings in auto-round's {module name, or regex that occurs in it: its settings}; names have precedence."""
    rules = _rules("extra_config", rules, config)
    if module in rules:
        return _own("extra_config", rules[module], config)
    for pattern, own in rules.items():
        if not pattern.replace(".", "").replace("_", "").isalnum() and _matches(
            occurs, pattern, module, config
        ):
            return _own("extra_config", own, config)
    return None


def _rules(key: str, rules: Any, config: ModelConfig) -> Mapping[str, Any]:
    if rules is None:
        return {}
    if not isinstance(rules, dict):
        _refuse(f"{key} is not an object of modules and their settings", config)
    return rules


def _own(key: str, own: Any, config: ModelConfig) -> Mapping[str, Any]:
    if own is False:
        return _NOT_QUANTIZED
    if own is None:
        return {}
    if not isinstance(own, dict):
        _refuse(f"{key} has {own!r} instead of a module's settings", config)
    return own


def _matches(match: Callable[[str, str], bool], pattern: str, module: str, config: ModelConfig) -> bool:
    try:
        return match(pattern, module)
    except ValueError as error:
        _refuse(f"{pattern[:100]!r} is not a valid or supported regex: it {error}", config)


def _number(
    own: Mapping[str, Any], given: Mapping[str, Any], keys: tuple[str, ...], config: ModelConfig
) -> int | None:
    found = [place[key] for place in (own, given) for key in keys if place.get(key) is not None]
    if not found:
        return None
    if type(found[0]) is not int:
        _refuse(f"its {keys[0]} {found[0]!r} is not an integer", config)
    return found[0]


def _refuse(message: str, config: ModelConfig) -> NoReturn:
    raise InvalidCheckpoint(f"quantization_config: {message}; correct it", uri=config.uri)
