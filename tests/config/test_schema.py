"""The JSON Schema, with which editors complete and check configs, accepts what the loader accepts."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from arrowquant_dist.config import (
    LayerOverride,
    QuantizationConfig,
    RunConfig,
    Transfer,
    load_config,
    parse_config,
)
from arrowquant_dist.errors import InvalidConfig
from tests.conftest import CHECKOUT

FILE = CHECKOUT / "arrowquant_dist" / "config" / "schema.json"
SCHEMA = json.loads(FILE.read_text())
CHECK = jsonschema.Draft7Validator(SCHEMA)
CONFIGS = sorted((CHECKOUT / "configs").glob("*.yaml"))
PARTS = {
    QuantizationConfig: SCHEMA["properties"],
    LayerOverride: SCHEMA["definitions"]["override"]["properties"],
    RunConfig: SCHEMA["definitions"]["run"]["properties"],
    Transfer: SCHEMA["definitions"]["transfer"]["properties"],
}
# One of each kind of value, and those at the limits of some key.
VALUES: list[Any] = [
    *(None, True, False, [], [""], ["a"], ["a", 1], {}, {"a": 1}, {"a": 0}, {"a": 9}, {"a": {}}, {"a": [1]}),
    *(
        -1,
        0,
        1,
        2,
        8,
        9,
        64,
        65,
        100,
        101,
        256,
        257,
        1024,
        1025,
        1 << 16,
        (1 << 16) - 1,
        1 << 20,
        (1 << 20) + 1,
    ),
    *(5 << 20, (5 << 20) - 1, 1 << 30, (1 << 30) + 1, 1 << 40, (1 << 40) + 1, 10**9 + 1, 100_001, 1e-7, 0.04),
    *(0.05, 0.5, 0.98, 1.5, -0.5, 3601.5, 700_000.5, 2_000_000.5),
    *(
        "",
        "a",
        "64",
        "64MiB",
        "1.5 gb",
        "64XB",
        "5.5MB",
        "2.0bits",
        "2 bit",
        "0.98",
        ".5",
        "5%",
        "5.5 %",
        "98",
    ),
    *(
        "int8",
        "int4",
        "int3",
        "int2",
        "fp16",
        "int5",
        "rtn",
        "mse",
        "gptq",
        "size",
        "counted",
        "awq",
        "float32",
    ),
    *(
        "bfloat16",
        "float16",
        "error",
        "keep",
        "skip",
        "zstd",
        "none",
        "gzip",
        "auto",
        "never",
        "inline",
        "ray",
    ),
]
# What other keys may have to say beside a value, so that it is the value alone that is right or wrong.
BESIDE: dict[str, list[dict[str, Any]]] = {
    "quant_type": [{"keep_codes": True}],
    "method": [{"hessians": "h"}, {"hessians": "h", "step": 1.0}],
    "step": [{"method": "size"}, {}],
    "row_exponent": [{"method": "size", "step": 1.0}],
    "rate": [{"method": "size", "step": 1.0}],
    "integer_zero_points": [{"symmetric": False}],
    "min_quality": [{"texts": "t"}, {}],
    "texts": [{"min_quality": 0.9}, {}],
}
# Sizes as texts are beyond the limits of some keys, which a pattern does not say: the loader alone refuses them.
SIZES = ("block_bytes", "shard_bytes", "range_bytes", "upload_bytes", "size")
BEYOND = ("64", "98", "0.98", ".5", "1.5 gb")


def taken(values: dict[str, Any]) -> bool:
    try:
        parse_config(b"run: {}", instead=values)
    except InvalidConfig:
        return False
    return True


@pytest.mark.parametrize("kind", PARTS)
def test_it_has_each_field_and_no_other(kind: type) -> None:
    also = {"run"} if kind is QuantizationConfig else set()
    assert set(PARTS[kind]) == {f.name for f in fields(kind)} | also


@pytest.mark.parametrize("kind", [QuantizationConfig, RunConfig, Transfer])
def test_defaults_are_those_of_the_fields(kind: type) -> None:
    made = kind()
    said = {name: value["default"] for name, value in PARTS[kind].items() if "default" in value}
    assert said == {name: getattr(made, name) for name in said}


@pytest.mark.parametrize("file", CONFIGS, ids=[file.stem for file in CONFIGS])
def test_each_config_is_valid_and_tells_editors_where_the_schema_is(file: Path) -> None:
    CHECK.validate(yaml.safe_load(file.read_text()))
    line = file.read_text().splitlines()[0]
    assert line.startswith("# yaml-language-server: $schema=")
    assert (file.parent / line.partition("=")[2]).samefile(FILE)
    load_config(file)


def test_it_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("kind", "key"),
    [(kind, key) for kind, keys in PARTS.items() for key in keys if key not in ("run", "transfer")],
)
def test_it_takes_what_the_loader_takes(kind: type, key: str) -> None:
    for value in VALUES:
        if key in SIZES and value in BEYOND:
            continue
        given = [_with(kind, key, value, beside) for beside in BESIDE.get(key, [{}])]
        assert all(map(CHECK.is_valid, given)) == any(map(taken, given)), value


def _with(kind: type, key: str, value: Any, beside: dict[str, Any]) -> dict[str, Any]:
    """A config with one value, and what has to stand beside it."""
    if kind is QuantizationConfig:
        return beside | {key: value}
    if kind is LayerOverride:
        own = {name: said for name, said in beside.items() if name not in ("hessians", "keep_codes")}
        return {"hessians": "h", "overrides": [{"layers": "a", "symmetric": True} | own | {key: value}]}
    return {"run": {key: value} if kind is RunConfig else {"transfer": {key: value}}}
