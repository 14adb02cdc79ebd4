"""The configs of a validation, each with the name of its folder, its column in tables, and its targets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from arrowquant_dist.config import QuantizationConfig, RunConfig, check_config, load_config
from arrowquant_dist.config.checks import as_tuple, invalid
from arrowquant_dist.errors import listed
from arrowquant_dist.location import Location, location
from arrowquant_dist.validation.place import PATHS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
MOST_CONFIGS = 20  # each is a column of the tables
DEFAULT_CONFIGS = ("int8", "int4", "int2")


@dataclass(frozen=True, slots=True)
class NamedConfig:
    """A config with its name. name: name of the preset, or of the file without its suffix. run: run settings from its
    file."""

    name: str
    config: QuantizationConfig
    run: RunConfig


def named_configs(
    configs: Sequence[Location] | Mapping[str, QuantizationConfig], run: RunConfig | None
) -> tuple[NamedConfig, ...]:
    """Reads and checks the configs. configs: presets and files, or configs by name. run: run settings that replace
    those in the files.

    Raises InvalidConfig for an invalid config or name, for none or too many, and for two of the same name, since each
    has a folder by its name.
    """
    if isinstance(configs, Mapping):
        found = [_given(name, config) for name, config in configs.items()]
    else:
        found = [_read(place) for place in as_tuple("configs", configs)]
    if not found:
        raise invalid("configs", "there are none; name at least one, such as int8")
    if len(found) > MOST_CONFIGS:
        raise invalid("configs", f"{len(found)} are too many for one report; use at most {MOST_CONFIGS}")
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        message = (
            f"two are called {listed(twice)}, but each needs a folder of its own name; rename one of them"
        )
        raise invalid("configs", message)
    return tuple(NamedConfig(one.name, one.config, one.run if run is None else run) for one in found)


def _given(name: str, config: QuantizationConfig) -> NamedConfig:
    check_config(config)
    return NamedConfig(_checked(name), config, RunConfig())


def _read(place: Location) -> NamedConfig:
    name = PurePosixPath(location(place, "configs")).name.removesuffix(".yaml").removesuffix(".yml")
    config, run = load_config(place)
    return NamedConfig(_checked(name), config, run)


def _checked(name: object) -> str:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        message = "a config's name becomes a folder's name: use at most 80 letters, digits, `.`, `-` and `_`"
        raise invalid("configs", message)
    if name in PATHS:
        raise invalid("configs", f"{name} is the name of a file of the report; rename the config")
    return name
