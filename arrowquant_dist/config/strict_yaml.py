"""Strict reading of YAML that people write: plain values alone, no repeated keys, nothing that takes long to read.
Errors repeat no word of the file, which may be a secret."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.location import without_credentials

MAX_YAML_NBYTES = 1 << 20
_MAX_NUMBER_CHARS = 64
_MAX_MERGED_KEYS = 10_000
# What Python raises where a value is not of the kind that its tag promises.
_OF_TAGS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_KEY_TWICE = re.compile(r"the key '[a-z_]+' is there twice")
# Words of the file in PyYAML's messages: an alias, a tag, a character, a number.
_QUOTED = re.compile(r"(['\"]).*\1|(?<=with base \d\d: ).*", re.DOTALL)


def read_yaml(uri: str, storage_options: Mapping[str, Any] | None, what: str, hint: str) -> bytes:
    """The bytes of the file at a path or an fsspec URL, cut one byte beyond what parsed_yaml accepts. what, hint: the
    kind of file, and what to do, for the InvalidConfig about a file that can't be read."""
    try:
        return _read(uri, storage_options)
    except Exception as error:
        if isinstance(error, FileNotFoundError) and "://" not in uri:
            raise InvalidConfig(f"{what} does not exist; {hint}", uri=uri) from error
        # Libraries behind fsspec raise errors of their own, often not OSErrors; any of them means an unreadable file.
        message = f"{what} can't be read; {hint} ({type(error).__name__}"
        if storage_options:  # the error may repeat any of them
            raise InvalidConfig(f"{message})", uri=without_credentials(uri)) from None
        raise InvalidConfig(f"{message}: {error})", uri=without_credentials(uri)) from error


def _read(uri: str, storage_options: Mapping[str, Any] | None) -> bytes:
    """Reads at most one byte more than a file may have."""
    if "://" not in uri:
        with Path(uri).open("rb") as file:
            return file.read(MAX_YAML_NBYTES + 1)
    import fsspec

    with fsspec.open(uri, "rb", **(storage_options or {})) as file:
        return bytes(file.read(MAX_YAML_NBYTES + 1))


def parsed_yaml(data: bytes, known_keys: frozenset[str], if_empty: str) -> Any:
    """The value of a file. known_keys: keys that errors may name. if_empty: what to do about a file without a value.

    Raises InvalidConfig, without the file's name."""
    if len(data) > MAX_YAML_NBYTES:
        raise InvalidConfig(f"is larger than {rounded_size(MAX_YAML_NBYTES)}, too large for a config")
    import yaml

    try:
        # A safe loader: plain values alone, no Python objects.
        values = yaml.load(data, _loader(known_keys))  # noqa: S506
    except (yaml.YAMLError, *_OF_TAGS) as error:
        # Not `from error`: its text shows the lines around the place, and with them whatever secrets they hold.
        raise InvalidConfig(f"is not valid YAML: {_reason(error)}") from None
    if values is None:
        raise InvalidConfig(f"is empty; {if_empty}")
    return values


@cache
def _loader(known_keys: Collection[str]) -> Any:
    import yaml

    class StrictLoader(yaml.SafeLoader):
        """Raises an error for repeated keys, of which YAML silently keeps the last, and for numbers that take longer
        to read than anyone takes to write them."""

        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    if key.value in seen:
                        shown = f"the key {key.value!r}" if key.value in known_keys else "a key"
                        message = f"{shown} is there twice"
                        raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
                    seen.add(key.value)
            return node

        def flatten_mapping(self, node: Any) -> None:
            super().flatten_mapping(node)
            if len(node.value) > _MAX_MERGED_KEYS:  # merges of merges double their number
                message = f"a mapping is merged from more than {_MAX_MERGED_KEYS} keys"
                raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)

        def construct_scalar(self, node: Any) -> Any:
            is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
            if is_number and len(node.value) > _MAX_NUMBER_CHARS:
                message = f"a number has {len(node.value)} characters"
                raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
            return super().construct_scalar(node)

    return StrictLoader


def _reason(error: Exception) -> str:
    """What is wrong and where, without any word of the file, since any line of it may hold a secret."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    problem = getattr(error, "problem", None)
    said = problem if isinstance(problem, str) else "a value is not what it looks like, or is not text"
    if _KEY_TWICE.fullmatch(said) is None:
        said = _QUOTED.sub("…", said)
    mark = getattr(error, "problem_mark", None)
    return (
        f"{said[:200]} (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else said[:200]
    )
