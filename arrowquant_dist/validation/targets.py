"""Targets from a YAML file: bounds for figures, by their keys in measures.py, for every config or for single ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arrowquant_dist.config import preset_names
from arrowquant_dist.config.checks import check_keys, check_mapping, check_number, invalid, nearest, within
from arrowquant_dist.config.positions import line_said
from arrowquant_dist.config.strict_yaml import parsed_yaml, read_yaml
from arrowquant_dist.errors import InvalidConfig, listed
from arrowquant_dist.location import Location, location, without_credentials
from arrowquant_dist.validation.measures import BY_KEY

CLASSIC = Path(__file__).with_name("targets.yaml")
_PARTS = ("every", "configs")
_IF_EMPTY = "write `every:` or `configs:` with targets below, or leave the file out"


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets of a validation. name: where they are from, without credentials. every: {key: target} for all configs.
    configs: {config: {key: target}}, which take precedence over `every`."""

    name: str
    every: Mapping[str, float]
    configs: Mapping[str, Mapping[str, float]]

    def of(self, config: str) -> dict[str, float]:
        """{key: target} of one config, in the order of measures.py."""
        own = {**self.every, **self.configs.get(config, {})}
        return {key: own[key] for key in BY_KEY if key in own}

    def refuse_unknown(self, configs: Collection[str]) -> None:
        """Raises InvalidConfig for targets of a config that is neither one of `configs`, which are validated, nor a
        preset."""
        for name in self.configs:
            if name not in configs and name not in preset_names():
                near = nearest(name, [*configs, *preset_names()])
                hint = f"did you mean {near!r}? " if near else ""
                message = f"is neither a validated config nor a preset; {hint}validated are {listed(configs)}"
                raise InvalidConfig(f"configs.{name[:60]}: {message}", uri=self.name)

    def unused(self, configs: Collection[str]) -> list[str]:
        """Names of configs that have targets but are not validated."""
        return [name for name in self.configs if name not in configs]


def read_targets(place: Location | None, storage_options: Mapping[str, Any] | None = None) -> Targets:
    """Reads targets from a path or URL; None: the classic ones.

    Raises InvalidConfig, which names file, key, reason and line.
    """
    uri = location(place, "targets") if place is not None else str(CLASSIC)
    data = read_yaml(uri, storage_options, "the file of targets", "check the path and the credentials")
    name = "the classic targets" if place is None else without_credentials(uri)
    return parse_targets(data, name)


def parse_targets(data: bytes, name: str) -> Targets:
    """Parses the content of a file of targets. name: name of the file in errors. Raises InvalidConfig."""
    try:
        values = check_mapping("the file", parsed_yaml(data, frozenset({*_PARTS, *BY_KEY}), _IF_EMPTY))
    except InvalidConfig as error:
        raise InvalidConfig(error.message, uri=name) from error
    try:
        return _parsed(values, name)
    except InvalidConfig as error:
        raise InvalidConfig(f"{error.message}{line_said(error.message, data)}", uri=name) from error


def _parsed(values: Mapping[str, Any], name: str) -> Targets:
    elsewhere = dict.fromkeys(BY_KEY, "under `every:`, or under a config's name in `configs:`")
    check_keys(values, _PARTS, elsewhere)
    every = _figures("every", values.get("every"))
    configs = check_mapping("configs", {} if values.get("configs") is None else values["configs"])
    found = {}
    for config, figures in configs.items():
        with within("configs"):
            found[config] = _figures(config, figures)
    return Targets(name, every, found)


def _figures(place: str, values: Any) -> dict[str, float]:
    figures = check_mapping(place, {} if values is None else values)
    with within(place):
        check_keys(figures, BY_KEY, {})
        for key, value in figures.items():
            if value is None:
                raise invalid(key, "has no value; write one, or leave the key out")
            check_number(key, value, BY_KEY[key].lowest, BY_KEY[key].highest)
    return {key: float(value) for key, value in figures.items()}
