"""Every error of the package stays short, says where, and survives being sent to another process."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import arrowquant_dist
from arrowquant_dist.errors import LISTED, MESSAGE_CHARS, ArrowQuantError, are, counted, listed, shortened


def _tree(root: type[ArrowQuantError]) -> Iterator[type[ArrowQuantError]]:
    yield root
    for branch in root.__subclasses__():
        yield from _tree(branch)


ERRORS = sorted(_tree(ArrowQuantError), key=lambda error: error.__name__)


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_stays_short_whatever_it_is_about(error: type[ArrowQuantError]) -> None:
    raised = error(
        f"these are wrong: {'x' * 403_072}; load it again",
        layer="y" * 100_000,
        uri=f"s3://bucket/{'z' * 100_000}",
        byte_range=(3, 9),
    )
    said = str(raised)
    assert len(said) < 2 * MESSAGE_CHARS + 400
    for part in ("layer 'yyyy", "s3://bucket/", "bytes 3-9", "these are wrong: xxx", "; load it again"):
        assert part in said
    assert len(raised.to_dict()["message"]) == len(said)
    assert raised.to_dict()["layer_name"] == "y" * 100_000


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_the_same_after_pickling(error: type[ArrowQuantError]) -> None:
    raised = error("m" * 9_000, layer="a.weight", uri="/x", byte_range=(0, 1))
    again = pickle.loads(pickle.dumps(raised))  # noqa: S301
    assert type(again) is error
    assert str(again) == str(raised)
    assert again.to_dict() == raised.to_dict()


def test_short_messages_are_left_alone() -> None:
    assert str(ArrowQuantError("m" * MESSAGE_CHARS)) == "m" * MESSAGE_CHARS


def test_five_names_are_listed_and_the_others_counted() -> None:
    assert listed("abcde") == "a, b, c, d, e"
    assert listed(range(403)) == "0, 1, 2, 3, 4 and 398 more"
    assert listed([]) == ""
    assert len(listed(["n" * 1_000_000] * 1_000)) < LISTED * 140


@pytest.mark.parametrize("count", [120, 121, 100_000])
def test_a_long_name_keeps_its_beginning_and_its_end(count: int) -> None:
    name = "a" * (count - 60) + "b" * 60
    short = shortened(name)
    assert len(short) <= 120
    assert (short == name) == (count <= 120)
    assert short.startswith("a" * 44)
    assert short.endswith("b" * 44)
    assert count <= 120 or f"({count - 88} characters)" in short


def test_one_is_and_several_are() -> None:
    assert [f"{counted(n, 'index', 'indices')} {are(n)}" for n in (0, 1, 2)] == [
        "0 indices are",
        "1 index is",
        "2 indices are",
    ]


PACKAGE = Path(arrowquant_dist.__file__).parent
NOUNS = r"bytes|layers|shards|parts|files|objects|tensors|rows|damaged objects"


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """(file, an f-string with {} in the place of each value), of all code."""
    return tuple(_texts())


def _texts() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values]
                yield path.relative_to(PACKAGE).as_posix(), "".join(parts)


def test_what_may_be_one_is_not_said_to_be_several() -> None:
    """A count at the beginning of a message, and a plural after it."""
    found = [pair for pair in texts() if re.match(rf"\{{\}} ({NOUNS}) (are|were|have)\b", pair[1])]
    assert found == []


# Counts that are never 1, and labels that name what they count: {file: the words after them}.
_ALWAYS_SEVERAL = {
    "calibration/run.py": "tokens are few",
    "config/size.py": "bits a weight",
    "driver/choice.py": "bytes",
    "evaluation/embeddings.py": "texts",
    "evaluation/run.py": "texts, but there|tokens",
    "report/cards.py": "bits a value|nats",  # as 4.13
    "report/evaluated.py": "nats",
    "report/pictures/noise.py": "bits a value",
    "report/pictures/pareto.py": "bits a value",
    "report/view.py": "params",  # as 22.7 M
    "sizing/calibrated.py": "bytes",
    "sizing/run.py": "bytes",
    "texts/read.py": "bytes|texts",
    "arena.py": "bytes",  # of memory that ran out
    "columns.py": "bytes or items",
    "config/checks.py": "bits|characters|values",  # too many to be shown
    "config/strict_yaml.py": "keys|characters",
    "config/patterns.py": "characters",
    "checkpoint/safetensors.py": "characters|sizes",
    "errors.py": "characters",
    "strict_json.py": "digits",
    "checkpoint/pickle_calls.py": "values",
    "checkpoint/pickle_scan.py": "steps",
    "checkpoint/quantized/mlx.py": "bits in groups",  # or None
    "checkpoint/torch_pickle.py": "values",  # of a dtype
    "encodings/packed.py": "codes",
    "encodings/float8.py": "codes",
    "export/compressed_tensors/packers.py": "bits",  # of a code
    "export/gguf/header.py": "files",
    "export/worker.py": "bytes",  # internal errors
    "format/parquet/limits.py": "columns or|characters",
    "plan/check.py": "bytes|times",  # of a name that is too long
    "plan/cut.py": "values",  # of a row that is too large
    "report/markdown.py": "params",  # as 22.7 M
    "report/text.py": "bits",  # as 3.95
    "storage/remote/upload.py": "parts",  # S3's limit
    "target/commit.py": "commits of",  # of 10,000
    "target/manifest.py": r"bytes\)",  # of an index
    "validation/measures.py": "bits|nats",  # as 7.42
}
_NOUN = r"[a-z]+s"
_NO_NOUNS = (
    "is|was|has|as|its|this|does|goes|gives|names|takes|needs|makes|holds|says|begins|matches|leaves|writes|chooses|"
    "stands|leads|lists|sees|gets|vs"
)


def test_a_count_before_a_plural_is_counted() -> None:
    """`counted` says `1 layer` and `2 layers`."""
    counts = re.compile(rf"(?:^|[ (])(?:\{{\}}|\{{\}} of \{{\}}) (?!(?:{_NO_NOUNS})\b){_NOUN}\b")
    found = [
        (file, text)
        for file, text in texts()
        if counts.search(text) and not re.search(rf"\{{\}} (?:{_ALWAYS_SEVERAL.get(file, '-')})", text)
    ]
    assert found == []


def test_a_budget_is_no_raw_count_of_bytes() -> None:
    found = [pair for pair in texts() if re.search(r"\{\} bytes (of memory|at once|of addresses)", pair[1])]
    assert found == []
    assert [pair for pair in texts() if re.search(r"larger than \{\} bytes", pair[1])] == []


def test_one_sentence_says_that_what_was_interrupted_can_be_resumed() -> None:
    assert [pair for pair in texts() if "interrupted" in pair[1]] == []
    said = [path for path in PACKAGE.rglob("*.py") if re.search(r"Interrupted\(\s*f?\"", path.read_text())]
    assert said == []
