"""No error of a config shows what may be a credential, neither in its text nor in its traceback."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import fsspec
import pytest

from arrowquant_dist.config import QuantizationConfig, RunConfig, load_config
from arrowquant_dist.config.load import parse_config
from arrowquant_dist.errors import InvalidConfig

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY00"  # noqa: S105
SHORT = "hunter2"
BROKEN = {
    "a tab": "run:\n  storage_options:\n    secret: {0}\n\tx: 1",
    "a quote without an end": "run: {{storage_options: {{secret: '{0}}}}}",
    "a bracket without an end": "run: {{storage_options: {{secret: {0}",
    "a colon in a value": "run:\n  storage_options:\n    secret: {0}: x",
    "an indent": "run:\n  storage_options:\n    key: x\n   secret: {0}",
    "an alias": "run: {{storage_options: {{secret: *{0}}}}}",
    "an anchor twice": "run: {{storage_options: {{a: &{0} 1, b: &{0} 2, c: *{0}}}}}",
    "a tag": "run: {{storage_options: {{secret: !{0} x}}}}",
    "a tag's handle": "run: {{storage_options: {{secret: !{0}!x y}}}}",
    "an escape": 'run: {{storage_options: {{secret: "\\q{0}"}}}}',
    "a percent": "run: {{storage_options: {{secret: %{0}}}}}",
    "a key twice": "run: {{storage_options: {{{0}: 1, {0}: 2}}}}",
    "no UTF-8": "run: {{storage_options: {{secret: {0}\x00}}}}",
    "a number of a secret": "run: {{storage_options: {{secret: !!int {0}}}}}",
    "a bool of a secret": "run: {{storage_options: {{secret: !!bool {0}}}}}",
    "a set of a secret": "run: {{storage_options: {{secret: !!set [{0}]}}}}",
    "a date of a secret": "run: {{storage_options: {{secret: !!timestamp {0}}}}}",
    "a list": "run: {{storage_options: [secret, {0}]}}",
    "a list of mappings": "run: {{storage_options: [{{secret: {0}}}]}}",
    "a text": "run: {{storage_options: 'secret={0}'}}",
    "a text alone": "run: {{storage_options: {0}}}",
    "of the source": "run: {{source_storage_options: [{0}]}}",
    "of the target": "run: {{target_storage_options: '{0}'}}",
    "a key that is no text": "run: {{storage_options: {{[secret, {0}]: 1}}}}",
    "one level too high": "storage_options: {{secret: {0}}}",
    "in place of run": "run: [{{storage_options: {{secret: {0}}}}}]",
    "in place of run, as text": "run: storage_options secret={0}",
    "in place of the file": "- run: {{storage_options: {{secret: {0}}}}}",
    "in place of an override": "overrides: [{{storage_options: {{secret: {0}}}}}]",
    "in place of the overrides": "overrides: {{storage_options: {{secret: {0}}}}}",
    "in transfer": "run: {{transfer: {{retries: {0}}}}}",
    "in transfer's sizes": "run: {{transfer: {{range_bytes: {0}}}}}",
    "in place of transfer": "run: {{transfer: '{0}'}}",
    "a list in transfer": "run: {{transfer: {{retries: [{0}]}}}}",
    "an unknown secret": "run: {{secret_key: {0}}}",
    "an unknown token at the top": "token: {0}",
    "itself": "run: {{storage_options: &a {{secret: {0}, b: *a}}}}",
}


@pytest.mark.parametrize("secret", [SECRET, SHORT])
@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_config_keeps_its_secrets(text: str, secret: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_config(text.format(secret).encode(), "f.yaml")
    assert secret not in "".join(traceback.format_exception(caught.value))
    assert secret[:6] not in str(caught.value)
    assert "f.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"quant_type: {SECRET}",
        f"run: {{workers: {SECRET}}}",
        f"run: {{engine: 's3://k:{SHORT}@b'}}",
        f"mixed_precision_layers: {SECRET}",
        f"run: {{block_bytes: 'secret {SHORT}'}}",
    ],
)
def test_a_long_text_in_a_wrong_place_is_not_repeated(text: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_config(text.encode())
    assert SECRET not in str(caught.value)
    assert SHORT not in str(caught.value)


@pytest.mark.parametrize("options", [[SECRET], SECRET, (SECRET,), {3: SECRET}, {SECRET}])
def test_options_of_another_type_are_named_by_their_type(options: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"storage_options: (must be a mapping|has a key)") as caught:
        RunConfig(storage_options=options)
    assert SECRET not in str(caught.value)


def test_an_error_of_the_place_of_a_config_repeats_no_option() -> None:
    with pytest.raises(InvalidConfig, match="can't be read") as caught:
        load_config("memory://nothing.yaml", {"no_such_option": SECRET})
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_options_are_in_no_repr_of_what_carries_them() -> None:
    run = RunConfig(storage_options={"key": SECRET}, source_storage_options={"secret": SECRET})
    for shown in (repr(run), str(run), repr(run.source_storage), repr(run.target_storage), repr([run])):
        assert SECRET not in shown


@pytest.mark.parametrize(
    "text",
    {
        "digits": "group_size: " + "9" * 100_000,
        "hexadecimal digits": "group_size: 0x" + "f" * 500_000,
        "sixties": "group_size: " + "1" + ":10" * 100_000,
        "digits of a float": "run: {shard_deadline: " + "1" * 100_000 + ".5}",
        "an infinite float": "run: {shard_deadline: .inf}",
        "a float beyond a double": "run: {shard_deadline: 1.0e+999}",
        "no number": "run: {shard_deadline: .nan}",
        "deep lists": "row_dims: " + "[" * 200_000,
        "deep mappings": "row_dims: " + "{a: " * 50_000,
        "deep blocks": "row_dims: " + "- " * 50_000,
        "aliases of aliases": "run: {storage_options: {a: &a0 [x, x], "
        + ", ".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))
        + "}}",
        "merges of merges": "\n".join(
            ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 60)]
        ),
        "too large": "#" * (1 << 21),
    }.values(),
)
def test_a_config_that_is_a_bomb_is_one_short_error(text: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_config(text.encode())
    assert len(str(caught.value)) < 300


def test_anchors_and_merges_that_people_write_are_read(tmp_path: Path) -> None:
    text = b"overrides:\n- &four {layers: a, quant_type: int4}\n- {<<: *four, layers: b}\n"
    fsspec.filesystem("memory").pipe_file("/anchors.yaml", text)
    config, _ = load_config("memory://anchors.yaml")
    assert [(one.layers, one.quant_type) for one in config.overrides] == [("a", "int4"), ("b", "int4")]
    assert isinstance(config, QuantizationConfig)
