"""What a config may contain, what it means, and errors that name file, key and reason."""

from __future__ import annotations

import contextlib
import pickle
import re
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.config import (
    LayerOverride,
    QuantizationConfig,
    QuantSpec,
    RunConfig,
    Transfer,
    load_config,
    parse_config,
    parse_size,
)
from arrowquant_dist.config.choices import QuantType
from arrowquant_dist.config.sizes import rounded_size
from arrowquant_dist.errors import InvalidConfig

MIB = 1 << 20


def test_the_defaults_are_the_classic_ones() -> None:
    config = QuantizationConfig()
    assert (config.quant_type, config.per_channel, config.group_size, config.symmetric) == (
        "int8",
        True,
        128,
        True,
    )
    assert config == QuantizationConfig("int8", True, 128, True, [])  # noqa: FBT003 - the classic order
    assert (config.mixed_precision_layers, config.overrides) == ((), ())


def test_lists_are_stored_as_tuples_and_mappings_as_overrides() -> None:
    values: dict[str, Any] = {
        "mixed_precision_layers": ["a"],
        "overrides": [{"layers": "x", "quant_type": "int4"}],
    }
    config = QuantizationConfig(**values)
    assert config.mixed_precision_layers == ("a",)
    assert config.overrides == (LayerOverride("x", "int4"),)
    assert hash(config) == hash(pickle.loads(pickle.dumps(config)))  # noqa: S301


@pytest.mark.parametrize(
    ("quant_type", "method"), [("int8", "rtn"), ("int4", "mse"), ("int3", "mse"), ("int2", "mse")]
)
def test_the_method_defaults_to_rtn_for_int8_and_mse_below(quant_type: QuantType, method: str) -> None:
    assert QuantizationConfig(quant_type).spec().method == method
    assert QuantizationConfig("int8").replace(quant_type=quant_type).spec().method == method
    assert QuantizationConfig().spec(LayerOverride("x", quant_type)).method == method
    assert QuantizationConfig(method="rtn").spec(LayerOverride("x", quant_type)).method == "rtn"


def test_an_override_takes_what_it_does_not_say_from_the_config() -> None:
    config = QuantizationConfig("int4", per_channel=False, group_size=64, symmetric=False, non_finite="keep")
    assert config.spec(LayerOverride("x", "int2")) == QuantSpec(
        "int2", per_channel=False, group_size=64, symmetric=False, method="mse", keep_non_finite=True
    )


def test_a_group_size_in_an_override_asks_for_groups() -> None:
    spec = QuantizationConfig(per_channel=True).spec(LayerOverride("x", "int4", group_size=64))
    assert (spec.per_channel, spec.group_size) == (False, 64)


def test_settings_without_effect_do_not_tell_specs_apart() -> None:
    assert QuantizationConfig(group_size=64).spec() == QuantizationConfig(group_size=128).spec()
    whole = QuantizationConfig(symmetric=False, integer_zero_points=True)
    assert not whole.spec(LayerOverride("x", symmetric=True)).integer_zero_points


def test_scales_of_another_dtype_are_a_layer_s_own_and_unknown_to_configs_of_before() -> None:
    config = QuantizationConfig("int4", scale_dtype="bfloat16")
    assert config.spec().scale_dtype == "bfloat16"
    assert config.spec(LayerOverride("x", scale_dtype="float32")).scale_dtype == "float32"
    assert config.spec(LayerOverride("x", quant_type="fp16")).scale_dtype == "float32"
    assert config.to_dict()["scale_dtype"] == "bfloat16"
    assert QuantizationConfig.from_dict(config.to_dict()) == config
    assert "scale_dtype" not in QuantizationConfig().to_dict()
    assert "scale_dtype" not in QuantizationConfig().spec().to_dict()


def test_flags_that_were_not_typed_leave_the_config_as_it_is() -> None:
    config = QuantizationConfig("int4", per_channel=False, symmetric=False)
    assert config.replace(quant_type=None, method=None) == config
    assert RunConfig(workers=2).replace(workers=None, overwrite=True) == RunConfig(workers=2, overwrite=True)
    with pytest.raises(InvalidConfig, match="quant_type"):
        config.replace(quant="int8")


# -- errors ------------------------------------------------------------------------------------------------------

_BAD: dict[str, str] = {
    "grup_size: 64": r"^f.yaml: grup_size: is not a known key; the nearest is 'group_size'",
    "zzz: 1": r"zzz: is not a known key; known are quant_type, ",
    "1: 2": r"the key 1, which is not a string",
    "block_bytes: 1MiB": r"block_bytes: does not belong here; it belongs under 'run:'",
    "run: {method: rtn}": r"run.method: .* at the top of the file",
    "run: {wrokers: 2}": r"run.wrokers: .* the nearest is 'workers'",
    "run: fast": r"run: must be a mapping .* not the text 'fast'",
    "quant_type: int5": r"quant_type: must be one of int8, int4, int3, int2, fp16, not the text 'int5'",
    "quant_type: itn4": r"did you mean 'int4'\?",
    "quant_type: 8": r"quant_type: must be one of .*, not the number 8",
    "quant_type:": r"quant_type: has no value",
    "per_channel: 1": r"per_channel: must be true or false, not the number 1",
    "per_channel: 'true'": r"per_channel: must be true or false, not the text 'true'",
    "group_size: '128'": r"group_size: must be a whole number, not the text '128'; leave out the quotes",
    "group_size: true": r"group_size: must be a whole number, not the yes/no value True",
    "group_size: 128.0": r"group_size: must be a whole number, not the number 128.0",
    "group_size: -1": r"group_size: must be from 0 to 1048576, not the number -1",
    "group_size: 2000000": r"group_size: must be from 0",
    "symmetric: []": r"symmetric: must be true or false, not the list \[\]",
    "method: best": r"method: must be one of rtn, mse, gptq, size, counted, not the text 'best'",
    "method: gptx\nhessians: h": r"method: must be one of rtn, .*, not the text 'gptx'; did you mean 'gptq'",
    "overrides: [{layers: x, method: gptx}]": r"overrides\[0\].method: must be one of rtn, mse",
    "method: gptq": r"method: gptq needs hessians; say where they are, or choose mse or rtn",
    "overrides: [{layers: x, method: gptq}]": r"overrides\[0\].method: gptq needs hessians",
    "integer_zero_points: true": r"integer_zero_points: needs symmetric: false",
    "overrides: [{layers: x, integer_zero_points: true}]": r"overrides\[0\].integer_zero_points: needs symmetric",
    "non_finite: ignore": r"non_finite: must be one of error, keep",
    "hessians: 3": r"hessians: must be a string",
    "mixed_precision_layers: embed": r"must be a list, not the text 'embed'; write \[embed\]",
    "mixed_precision_layers: {a: b}": r"mixed_precision_layers: must be a list",
    "mixed_precision_layers: [no]": r"mixed_precision_layers\[0\]: must be a string, .*quote it, YAML reads yes, no",
    "mixed_precision_layers: [a, '']": r"mixed_precision_layers\[1\]: must not be empty",
    "mixed_precision_layers: ['/(/']": r"'/\(/' is not a valid regex: missing \)",
    "mixed_precision_layers: ['//']": r"is an empty regex",
    f"mixed_precision_layers: [{'x' * 300}]": r"has 300 characters, but a pattern has at most 256",
    "row_dims: 2": r"row_dims: must be a mapping",
    "row_dims: {x: 0}": r"row_dims\['x'\]: must be from 1 to 8",
    "row_dims: {'/[/': 2}": r"row_dims\['/\[/'\]: .* is not a valid regex",
    "overrides: {layers: x}": r"overrides: must be a list",
    "overrides: [x]": r"overrides\[0\]: must be a mapping",
    "overrides: [{quant_type: int4}]": r"overrides\[0\].layers: is missing",
    "overrides: [{layers: x}]": r"overrides\[0\].layers: 'x' has no settings",
    "overrides: [{layers: x, quant_type: }]": r"overrides\[0\].quant_type: has no value",
    "overrides: [{layers: a, bits: 4}]": r"overrides\[0\].bits: is not a known key",
    "overrides: [{layers: a, quant_type: fp16, method: mse}]": r"overrides\[0\].method: mse has no effect on fp16",
    "overrides: [{layers: a, row_dims: true}]": r"overrides\[0\].row_dims: must be a whole number",
    "scale_dtype: float16": r"scale_dtype: must be one of float32, bfloat16, not the text 'float16'",
    "scale_dtype: ": r"scale_dtype: has no value",
    "size: 5.5 parsecs": r"size: must be a size such as 5.5MB or 2.0bits \(a weight\), not the text '5.5 parsecs'",
    "size: 0": r"size: must be above 0",
    "size: 65bits": r"size: must be above 0 and at most 64 bits a weight, not the text '65bits'",
    "size: true": r"size: must be a size",
    "size: 5MB\nquant_type: int4": r"quant_type: cannot be combined with size",
    "size: 5MB\nmethod: mse": r"method: cannot be combined with size",
    "size: 5MB\nsymmetric: false": r"symmetric: cannot be combined with size",
    "size: 5MB\nkeep_codes: true": r"keep_codes: cannot be combined with size",
    "size: 5MB\noverrides: [{layers: x, group_size: 32}]": r"overrides\[0\].quant_type: is missing: size chooses",
    "method: size": r"step: is missing: method size needs it",
    "method: size\nstep: 0": r"step: must be from 1e-06 to 1e\+06, not the number 0",
    "method: size\nstep: 1\nrow_exponent: 2": r"row_exponent: must be from 0 to 1, not the number 2",
    "method: gptq\nhessians: h\nstep: 1\nrow_exponent: 0.1": r"row_exponent: is only for the methods size and counted",
    "method: gptq\nhessians: h\nrate: 0.1": r"rate: has no effect without a step",
    "method: gptq\nhessians: h\nstep: 1\nsymmetric: false": r"method: gptq with a step needs one scale per row",
    "method: size\nstep: 1\nsymmetric: false": r"method: size with a step needs one scale per row",
    "method: size\nstep: 1\nscale_dtype: bfloat16": r"scale_dtype: cannot be set with a step",
    "method: mse\nstep: 1": r"step: is only for the methods size, counted and gptq, not for mse",
    "overrides: [{layers: x, step: 1}]": r"overrides\[0\].step: is only for the methods size, counted and gptq",
    "overrides: [{layers: x, method: size}]": r"overrides\[0\].step: is missing",
    "run: {block_bytes: 1KiB}": r"run.block_bytes: must be from 64 KiB to 1 GiB, not the text '1KiB'",
    "run: {block_bytes: 2GiB}": r"run.block_bytes: must be from 64 KiB to 1 GiB",
    "run: {block_bytes: 64 MB of it}": r"run.block_bytes: must be a size such as 64MiB",
    "run: {block_bytes: true}": r"run.block_bytes: must be a size",
    "run: {shard_bytes: -1}": r"run.shard_bytes: must not be negative",
    "run: {tensor_parallel: 0}": r"run.tensor_parallel: must be from 1 to 1024",
    "run: {tensor_parallel: true}": r"run.tensor_parallel: must be a whole number",
    "run: {direct_writes: always}": r"run.direct_writes: must be one of auto, never, not the text 'always'",
    "run: {compression: }": r"run.compression: must be one of zstd, none, not nothing",
    "run: {engine: dask}": r"run.engine: must be one of auto, inline, ray",
    "run: {workers: 0}": r"run.workers: must be from 1",
    "run: {workers: true}": r"run.workers: must be a whole number",
    "run: {engine: inline, address: auto}": r"run.address: is for Ray, but engine is inline",
    "run: {overwrite: 1}": r"run.overwrite: must be true or false",
    "run: {storage_options: x}": r"run.storage_options: must be a mapping",
    "quant_type: int8\nquant_type: int4": r"is not valid YAML: the key 'quant_type' is there twice .*line 2",
    "quant_type: [": r"is not valid YAML: .*line 1",
    "quant_type: !!python/object/apply:os.getcwd []": r"is not valid YAML: could not determine a constructor",
    "d: 2020-13-45": r"is not valid YAML",
    "[int8]": r"the file: must be a mapping",
    "# nothing\n": r"is empty; write at least quant_type",
}


@pytest.mark.parametrize("text", _BAD)
def test_a_bad_config_is_an_error_that_names_file_key_and_reason(text: str) -> None:
    with pytest.raises(InvalidConfig, match=_BAD[text]) as error:
        parse_config(text.encode(), "f.yaml")
    assert error.value.uri == "f.yaml"


@pytest.mark.parametrize(
    "fields", [{"group_size": "128"}, {"per_channel": 1}, {"overrides": [{"layers": "x"}]}]
)
def test_python_is_checked_as_strictly_as_yaml(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=re.escape(next(iter(fields)))):
        QuantizationConfig(**fields)


def test_an_alias_bomb_is_refused_in_no_time() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    bomb = "\n".join([*lines, "quant_type: *a29"])
    with pytest.raises(InvalidConfig, match="a0: is not a known key"):
        parse_config(bomb.encode())
    nested = "quant_type: &a [[[[[[[x]]]]]]]\nmethod: *a"
    with pytest.raises(InvalidConfig, match="quant_type: must be one of"):
        parse_config(nested.encode())


@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff\xfe\x00", b"\x00", b"#" * (2 << 20)])
def test_bytes_that_are_no_yaml_are_one_clear_error(data: bytes) -> None:
    with pytest.raises(InvalidConfig, match=r"is not valid YAML|is larger than"):
        parse_config(data)


@settings(max_examples=200)
@given(st.binary(max_size=80) | st.text("quant_type: in48{}[]&*!|>-#\n'\"%@", max_size=60).map(str.encode))
def test_no_bytes_make_another_error_than_invalid_config(data: bytes) -> None:
    with contextlib.suppress(InvalidConfig):
        parse_config(data)


# -- files -------------------------------------------------------------------------------------------------------


def test_a_file_is_read_from_disk_and_from_any_fsspec_url(tmp_path: Path) -> None:
    text = b"quant_type: int4\nsymmetric: no\nrun: {block_bytes: 1MiB, workers: 3}\n"
    (tmp_path / "c.yaml").write_bytes(text)
    fsspec.filesystem("memory").pipe_file("/configs/c.yaml", text)
    expected = (QuantizationConfig("int4", symmetric=False), RunConfig(block_bytes=MIB, workers=3))
    assert load_config(tmp_path / "c.yaml") == load_config("memory://configs/c.yaml") == expected


def test_an_empty_run_section_means_the_defaults() -> None:
    assert parse_config(b"quant_type: int8\nrun:\n") == (QuantizationConfig(), RunConfig())


@pytest.mark.parametrize("uri", ["{tmp}/nothing.yaml", "{tmp}", "memory://nothing.yaml", "nosuch://x/c.yaml"])
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(uri: str, tmp_path: Path) -> None:
    path = uri.format(tmp=tmp_path)
    with pytest.raises(
        InvalidConfig, match=r"config (does not exist|can't be read); check the path"
    ) as error:
        load_config(path)
    assert error.value.uri == path


def test_credentials_of_a_config_url_are_not_shown() -> None:
    with pytest.raises(InvalidConfig) as error:
        parse_config(b"x: 1", "s3://key:secret@bucket/c.yaml?X-Amz-Signature=secret")
    assert str(error.value).startswith("s3://bucket/c.yaml: ")


def test_storage_options_are_in_no_repr() -> None:
    run = RunConfig(storage_options={"secret": "hunter2"}, target_storage_options={"key": "hunter2"})
    assert "hunter2" not in repr(run)
    assert run.source_storage.options == {"secret": "hunter2"}
    assert run.target_storage.options == {"secret": "hunter2", "key": "hunter2"}


# -- round trip --------------------------------------------------------------------------------------------------

_PATTERNS = st.text("abc.*?0", min_size=1, max_size=6)
_OVERRIDES = st.builds(
    LayerOverride,
    _PATTERNS,
    quant_type=st.sampled_from(["int8", "int4", "int3", "int2"]),
    per_channel=st.none() | st.booleans(),
    group_size=st.none() | st.integers(0, 256),
    symmetric=st.none() | st.booleans(),
    method=st.sampled_from([None, "rtn", "mse"]),
    row_dims=st.none() | st.integers(1, 3),
)
_CONFIGS = st.builds(
    QuantizationConfig,
    quant_type=st.sampled_from(["int8", "int4", "int3", "int2", "fp16"]),
    per_channel=st.booleans(),
    group_size=st.integers(0, 1 << 20),
    symmetric=st.sampled_from([False]),
    mixed_precision_layers=st.lists(_PATTERNS, max_size=3),
    method=st.sampled_from([None, "rtn", "mse"]),
    integer_zero_points=st.booleans(),
    non_finite=st.sampled_from(["error", "keep"]),
    row_dims=st.dictionaries(_PATTERNS, st.integers(1, 8), max_size=2),
    hessians=st.none() | st.just("s3://m/hessians"),
    overrides=st.lists(_OVERRIDES, max_size=3),
)


@given(_CONFIGS)
def test_a_config_survives_its_mapping_and_yaml(config: QuantizationConfig) -> None:
    import yaml

    assert QuantizationConfig.from_dict(config.to_dict()) == config
    assert parse_config(yaml.safe_dump(config.to_dict()).encode())[0] == config


def test_a_configs_mapping_has_no_credentials() -> None:
    config = QuantizationConfig(hessians="s3://key:secret@bucket/h?sig=secret")
    assert config.to_dict()["hessians"] == "s3://bucket/h"


# -- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        (0, 0),
        (1 << 40, 1 << 40),
        ("7", 7),
        ("7 b", 7),
        ("64MiB", 64 * MIB),
        ("64 mib", 64 * MIB),
        ("2GB", 2_000_000_000),
        ("1.5 GiB", 1536 * MIB),
        ("0.1kB", 100),
        ("3TiB", 3 << 40),
    ],
)
def test_a_size_is_a_number_with_a_unit(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "MiB", "1e9", "-1MiB", "1 QiB", "1,5GB", "٣MiB", "9" * 30, 1.5, True, None, -1]
)
def test_what_is_no_size_is_an_error(text: Any) -> None:
    with pytest.raises(InvalidConfig, match="memory_budget: must"):
        parse_size(text, "memory_budget")


@given(st.integers(0, 1 << 50))
def test_whole_numbers_of_bytes_are_exact(nbytes: int) -> None:
    assert parse_size(nbytes) == parse_size(str(nbytes)) == nbytes
    assert parse_size(f"{nbytes}KiB") == nbytes << 10


# Arguments of Python callers


@pytest.mark.parametrize(
    ("cls", "placed", "named", "said"),
    [
        (QuantizationConfig, (), {"bits": 4}, "bits: is not a known key; the nearest is 'quant_type'"),
        (QuantizationConfig, (), {"sym": True}, "the nearest is 'symmetric'"),
        (QuantizationConfig, (), {"group_sise": 4}, "the nearest is 'group_size'"),
        (QuantizationConfig, ("int4",) * 40, {}, "QuantizationConfig takes .* values, not 40"),
        (QuantizationConfig, ("int4",), {"quant_type": "int8"}, "quant_type: is given twice"),
        (QuantizationConfig, ("int4",), {"qqqq": 1}, "known are quant_type, .* and [0-9]+ more"),
        (LayerOverride, (), {"quant_type": "int4"}, "layers: is missing"),
        (LayerOverride, ("a",), {"bits": 4}, "the nearest is 'quant_type'"),
        (RunConfig, (), {"worker": 3}, "the nearest is 'workers'"),
        (RunConfig, (), {"num_workers": 3}, "the nearest is 'workers'"),
        (RunConfig, (), {"engine": "Ray"}, "did you mean 'ray'"),
        (RunConfig, (), {"engine": "threads"}, "must be one of auto, inline, ray"),
        (RunConfig, (), {"engine": None}, "must be one of auto, inline, ray"),
        (RunConfig, (), {"transfer": {"retry": 1}}, "the nearest is 'retries'"),
        (Transfer, (), {"timeout": 3}, "timeout: is not a known key"),
    ],
)
def test_an_unknown_argument_gets_the_nearest_name(
    cls: type[Any], placed: tuple[Any, ...], named: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidConfig, match=said):
        cls(*placed, **named)


WRONG: tuple[Any, ...] = (
    *(True, "128", 1.5, None, b"x", [], {}, object(), float("nan")),
    *(np.int64(3), np.float32(2), np.array([True])[0]),
)
FIELDS = [
    (cls, name)
    for cls, names in (
        (QuantizationConfig, ("quant_type", "per_channel", "group_size", "symmetric", "method", "row_dims")),
        (
            QuantizationConfig,
            ("integer_zero_points", "non_finite", "mixed_precision_layers", "overrides", "hessians"),
        ),
        (
            RunConfig,
            ("block_bytes", "shard_bytes", "compression", "engine", "address", "workers", "overwrite"),
        ),
        (RunConfig, ("shard_attempts", "shard_deadline", "direct_writes", "transfer", "storage_options")),
        (
            Transfer,
            (
                "range_bytes",
                "upload_bytes",
                "parts_in_flight",
                "requests",
                "retries",
                "hedges",
                "backoff",
                "read_twice",
                "connect_timeout",
            ),
        ),
    )
    for name in names
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=str)
def test_a_value_of_a_wrong_type_is_refused_or_means_what_it_says(
    cls: type[Any], name: str, wrong: Any
) -> None:
    """Never another error than ours, and what is taken is kept as it was given, or is none given."""
    try:
        kept = getattr(cls(**{name: wrong}), name)
    except InvalidConfig as refused:
        said = refused.message
    else:
        said = f"{name} was taken"
        assert kept is wrong or kept == wrong or not wrong
        assert isinstance(wrong, bool) == isinstance(kept, bool)
    assert said.startswith(name)


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (64 << 20, "64 MiB"),
        ((64 << 20) + 1, "64.1 MiB"),  # never as much as what it is more than
        (1288490189, "1.21 GiB"),
        (47249, "46.2 KiB"),
        (300 << 30, "300 GiB"),
        (5 << 40, "5 TiB"),
    ],
)
def test_sizes_for_people_are_rounded_up(nbytes: int, shown: str) -> None:
    assert rounded_size(nbytes) == shown
