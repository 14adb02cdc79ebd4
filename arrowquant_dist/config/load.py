"""A YAML file → (QuantizationConfig, RunConfig)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from arrowquant_dist.config.checks import check_keys, check_mapping, check_options, within
from arrowquant_dist.config.positions import line_said
from arrowquant_dist.config.preset import config_place, near_preset
from arrowquant_dist.config.quantization import LayerOverride, QuantizationConfig
from arrowquant_dist.config.run import RunConfig
from arrowquant_dist.config.storage import Transfer
from arrowquant_dist.config.strict_yaml import parsed_yaml, read_yaml
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.location import Location, without_credentials

_NOTHING: Mapping[str, Any] = {}
_IF_EMPTY = "write at least quant_type, or leave the config out"
_KNOWN_KEYS = frozenset(
    f.name for kind in (QuantizationConfig, LayerOverride, RunConfig, Transfer) for f in fields(kind)
)


def load_config(
    path_or_uri: Location,
    storage_options: Mapping[str, Any] | None = None,
    instead: Mapping[str, Any] = _NOTHING,
) -> tuple[QuantizationConfig, RunConfig]:
    """Reads a config and returns what to do and how to run it, as in `ArrowQuantizer(*load_config("int4"))`.

    path_or_uri: the name of a preset (`presets()` lists them), a local file, or a file at any fsspec URL. A single word
        of letters, digits, `-` and `_` is always a preset's name, whatever is in the working directory; `./int4` and
        path objects are files.
    storage_options: fsspec's options to reach the file; default: none.
    instead: keys and values that override the file's before defaults are derived from them, such as `{"hessians":
        "out/statistics"}`; default: none.

    Raises InvalidConfig, which names the file, the key, the reason and the line, also if the file cannot be read.
    """
    uri = config_place(path_or_uri)
    check_mapping("instead", instead)
    if storage_options is not None:
        storage_options = check_options("storage_options", storage_options)
    hint = near_preset(uri) or "check the path and the credentials"
    data = read_yaml(uri, storage_options, "the config", hint)
    return parse_config(data, uri, instead)


def parse_config(
    data: bytes, uri: str = "config", instead: Mapping[str, Any] = _NOTHING
) -> tuple[QuantizationConfig, RunConfig]:
    """Parses the bytes of a config's YAML file; `uri` names the file in errors. Raises InvalidConfig."""
    try:
        values = check_mapping("the file", parsed_yaml(data, _KNOWN_KEYS, _IF_EMPTY))
    except InvalidConfig as error:
        raise InvalidConfig(error.message, uri=without_credentials(uri)) from error
    try:
        return _parse({**values, **instead})
    except InvalidConfig as error:
        where = line_said(error.message, data, instead)
        raise InvalidConfig(f"{error.message}{where}", uri=without_credentials(uri)) from error


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
