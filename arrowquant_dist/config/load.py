"""A YAML file → (QuantizationConfig, RunConfig)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from arrowquant_dist.config.checks import check_keys, check_mapping, within
from arrowquant_dist.config.quantization import QuantizationConfig, without_credentials
from arrowquant_dist.config.run import RunConfig
from arrowquant_dist.errors import InvalidConfig

MAX_CONFIG_NBYTES = 1 << 20


def load_config(
    path_or_uri: str | Path, storage_options: Mapping[str, Any] | None = None
) -> tuple[QuantizationConfig, RunConfig]:
    """Reads a config file, local or at any fsspec URL.

    Raises InvalidConfig, which names the file, the key and the reason; a file that can't be read is one too.
    """
    uri = str(path_or_uri)
    try:
        data = _read(uri, storage_options)
    except Exception as error:
        # What stands behind fsspec has errors of its own, often no OSError; each means: no config.
        message = (
            f"the config can't be read; check the path and the credentials ({type(error).__name__}: {error})"
        )
        raise InvalidConfig(message, uri=without_credentials(uri)) from error
    return parse_config(data, uri)


def parse_config(data: bytes, uri: str = "config") -> tuple[QuantizationConfig, RunConfig]:
    """The config in a YAML file's bytes; `uri` names the file in errors. Raises InvalidConfig."""
    try:
        return _parse(check_mapping("the file", _yaml(data)))
    except InvalidConfig as error:
        raise InvalidConfig(error.message, uri=without_credentials(uri)) from error


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
        raise InvalidConfig(f"is larger than {MAX_CONFIG_NBYTES} bytes, too large for a config")
    import yaml

    class UniqueKeys(yaml.SafeLoader):
        """YAML keeps the last of two equal keys without a word; here that is an error."""

        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    if key.value in seen:
                        message = f"the key {key.value[:80]!r} is there twice"
                        raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
                    seen.add(key.value)
            return node

    try:
        # A safe loader: plain values alone, no Python objects.
        values = yaml.load(data, UniqueKeys)  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidConfig(f"is not valid YAML: {reason}") from error
    if values is None:
        raise InvalidConfig("is empty; write at least quant_type, or leave the config out")
    return values
