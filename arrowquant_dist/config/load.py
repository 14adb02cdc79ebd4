"""A YAML file → (QuantizationConfig, RunConfig)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from arrowquant_dist.config.checks import check_keys, check_mapping, check_options, within
from arrowquant_dist.config.positions import line_said
from arrowquant_dist.config.preset import config_place, near_preset
from arrowquant_dist.config.quantization import LayerOverride, QuantizationConfig
from arrowquant_dist.config.run import RunConfig
from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.config.storage import Transfer
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.location import Location, without_credentials

MAX_CONFIG_NBYTES = 1 << 20
_MAX_NUMBER_CHARS = 64
_MAX_MERGED_KEYS = 10_000
_NOTHING: Mapping[str, Any] = {}
# What Python says where a tag promises another value than there is.
_OF_TAGS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_KNOWN_KEYS = frozenset(
    f.name for kind in (QuantizationConfig, LayerOverride, RunConfig, Transfer) for f in fields(kind)
)
_KEY_TWICE = re.compile(r"the key '[a-z_]+' is there twice")
# Words of the file in PyYAML's sentences: an alias, a tag, a character, a number.
_QUOTED = re.compile(r"(['\"]).*\1|(?<=with base \d\d: ).*", re.DOTALL)


def load_config(
    path_or_uri: Location,
    storage_options: Mapping[str, Any] | None = None,
    instead: Mapping[str, Any] = _NOTHING,
) -> tuple[QuantizationConfig, RunConfig]:
    """Reads a config: what to do, and how to run it, as `ArrowQuantizer(*load_config("int4"))` takes them.

    path_or_uri: the name of a preset (`presets()` has them), a local file, or a file at any fsspec URL. A text that is
    one word of letters, digits, `-` and `_` is a preset's name, whatever the working directory has; `./int4` and path
    objects are files. storage_options: fsspec's, to reach the file; default none. instead: keys that win over the
    file's before defaults follow from them, as `{"hessians": "out/statistics"}`; default none.

    Raises InvalidConfig, which names the file, the key, the reason and the line; a file that can't be read is one too.
    """
    uri = config_place(path_or_uri)
    if storage_options is not None:
        storage_options = check_options("storage_options", storage_options)
    try:
        data = _read(uri, storage_options)
    except Exception as error:
        # What stands behind fsspec has errors of its own, often no OSError; each means: no config.
        hint = near_preset(uri) or "check the path and the credentials"
        message = f"the config can't be read; {hint} ({type(error).__name__}"
        if storage_options:  # any of which the error may repeat
            raise InvalidConfig(f"{message})", uri=without_credentials(uri)) from None
        raise InvalidConfig(f"{message}: {error})", uri=without_credentials(uri)) from error
    return parse_config(data, uri, instead)


def parse_config(
    data: bytes, uri: str = "config", instead: Mapping[str, Any] = _NOTHING
) -> tuple[QuantizationConfig, RunConfig]:
    """The config in a YAML file's bytes; `uri` names the file in errors. Raises InvalidConfig."""
    try:
        values = check_mapping("the file", _yaml(data))
    except InvalidConfig as error:
        raise InvalidConfig(error.message, uri=without_credentials(uri)) from error
    try:
        return _parse({**values, **instead})
    except InvalidConfig as error:
        where = line_said(error.message, data, instead)
        raise InvalidConfig(f"{error.message}{where}", uri=without_credentials(uri)) from error


def _read(uri: str, storage_options: Mapping[str, Any] | None) -> bytes:
    """At most one byte more than a config may have."""
    if "://" not in uri:
        with Path(uri).open("rb") as file:
            return file.read(MAX_CONFIG_NBYTES + 1)
    import fsspec

    with fsspec.open(uri, "rb", **(storage_options or {})) as file:
        return bytes(file.read(MAX_CONFIG_NBYTES + 1))


def _parse(values: Mapping[str, Any]) -> tuple[QuantizationConfig, RunConfig]:
    run_keys = {f.name: "under 'run:'" for f in fields(RunConfig)}
    check_keys(values, [*(f.name for f in fields(QuantizationConfig)), "run"], run_keys)
    run_values = check_mapping("run", {} if values.get("run") is None else values["run"])
    quantization_keys = {
        f.name: "at the top of the file, not under 'run:'" for f in fields(QuantizationConfig)
    }
    with within("run"):
        check_keys(run_values, run_keys, quantization_keys)
        run = RunConfig.from_dict(run_values)
    return QuantizationConfig.from_dict({k: v for k, v in values.items() if k != "run"}), run


def _yaml(data: bytes) -> Any:
    if len(data) > MAX_CONFIG_NBYTES:
        raise InvalidConfig(f"is larger than {rounded_size(MAX_CONFIG_NBYTES)}, too large for a config")
    import yaml

    try:
        # A safe loader: plain values alone, no Python objects.
        values = yaml.load(data, _loader())  # noqa: S506
    except (yaml.YAMLError, *_OF_TAGS) as error:
        # Not `from error`: its text shows the lines around the place, and with them whatever secrets they hold.
        raise InvalidConfig(f"is not valid YAML: {_reason(error)}") from None
    if values is None:
        raise InvalidConfig("is empty; write at least quant_type, or leave the config out")
    return values


@cache
def _loader() -> Any:
    import yaml

    class StrictLoader(yaml.SafeLoader):
        """YAML keeps the last of two equal keys without a word; here that is an error. So are numbers that take longer
        to read than anyone takes to write them."""

        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    if key.value in seen:
                        shown = f"the key {key.value!r}" if key.value in _KNOWN_KEYS else "a key"
                        message = f"{shown} is there twice"
                        raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
                    seen.add(key.value)
            return node

        def flatten_mapping(self, node: Any) -> None:
            super().flatten_mapping(node)
            if len(node.value) > _MAX_MERGED_KEYS:  # merges of merges double them
                message = f"a mapping is merged of more than {_MAX_MERGED_KEYS} keys"
                raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)

        def construct_scalar(self, node: Any) -> Any:
            is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
            if is_number and len(node.value) > _MAX_NUMBER_CHARS:
                message = f"a number has {len(node.value)} characters"
                raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
            return super().construct_scalar(node)

    return StrictLoader


def _reason(error: Exception) -> str:
    """What is wrong and where, without a word of the file itself: any line of it may hold a secret."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    problem = getattr(error, "problem", None)
    said = problem if isinstance(problem, str) else "a value is not what it looks like, or no text"
    if _KEY_TWICE.fullmatch(said) is None:
        said = _QUOTED.sub("…", said)
    mark = getattr(error, "problem_mark", None)
    return (
        f"{said[:200]} (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else said[:200]
    )
