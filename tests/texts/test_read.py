"""Texts from files of each format and place, and one clear error for anything that is not a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from arrowquant_dist.config import Storage
from arrowquant_dist.errors import InvalidConfig, NotFound
from arrowquant_dist.texts import read as reading
from arrowquant_dist.texts import read_texts
from tests.servers.fixtures import Bucket

TEXTS = ("A first one.", "Ünïcode\u2028stays on its line, \x0b too", "third")


def txt(path: Path, texts: Any = TEXTS) -> Path:
    path.write_bytes("\n".join(texts).encode() + b"\n")
    return path


def jsonl(path: Path, texts: Any = TEXTS, key: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": 1, key: text}) + "\n" for text in texts))
    return path


def parquet(path: Path, texts: Any = TEXTS, name: str = "text", kind: pa.DataType | None = None) -> Path:
    column = pa.array([*texts], kind or pa.string())
    pq.write_table(pa.table({"id": range(len(texts)), name: column}), path)
    return path


@pytest.mark.parametrize(
    ("make", "suffix"), [(txt, ".txt"), (jsonl, ".jsonl"), (parquet, ".parquet"), (txt, ".TXT")]
)
def test_every_format_gives_the_same_texts(tmp_path: Path, make: Any, suffix: str) -> None:
    found = read_texts(make(tmp_path / f"texts{suffix}"))
    assert found.items == TEXTS
    assert found.digest == read_texts([*TEXTS]).digest


def test_the_digest_is_of_lengths_and_bytes() -> None:
    packed = b"".join(len(t.encode()).to_bytes(8, "little") + t.encode() for t in TEXTS)
    assert read_texts([*TEXTS]).digest == f"xxh3_128:{xxhash.xxh3_128_hexdigest(packed)}"
    assert read_texts(["ab", "c"]).digest != read_texts(["a", "bc"]).digest


def test_white_space_goes_and_empty_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(b"\xef\xbb\xbf one \r\n\r\n  \ntwo\n\n")
    found = read_texts(path)
    assert found.items == ("one", "two")
    assert found.skipped == 4
    lines = tmp_path / "texts.jsonl"
    lines.write_text('{"text": " one"}\n\n{"text": ""}\n{"text": "two"}')
    assert read_texts(lines).items == ("one", "two")
    assert read_texts(lines).skipped == 2
    assert read_texts(parquet(tmp_path / "t.parquet", ["one", None, "", "two "])).items == ("one", "two")


@pytest.mark.parametrize(("make", "suffix"), [(jsonl, ".jsonl"), (parquet, ".parquet")])
def test_a_column_has_any_name(tmp_path: Path, make: Any, suffix: str) -> None:
    path = make(tmp_path / f"texts{suffix}", TEXTS, "sentence")
    assert read_texts(path, "sentence").items == TEXTS
    with pytest.raises(
        InvalidConfig, match=r"has no (column )?'text', only id, sentence; name i.* with --column"
    ):
        read_texts(path)


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_s_other_kinds_of_texts(tmp_path: Path, kind: pa.DataType) -> None:
    assert read_texts(parquet(tmp_path / "texts.parquet", kind=kind)).items == TEXTS


def test_they_come_from_an_object_store(bucket: Bucket, tmp_path: Path) -> None:
    for path in (txt(tmp_path / "a.txt"), jsonl(tmp_path / "b.jsonl"), parquet(tmp_path / "c.parquet")):
        bucket.objects.put(f"{bucket.uri}/{path.name}", path.read_bytes())
        found = read_texts(f"{bucket.uri}/{path.name}", None, Storage(bucket.storage_options))
        assert (found.items, found.name) == (TEXTS, f"{bucket.uri}/{path.name}")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"fine\nb\xe4d\n", r"line 2 is not UTF-8 \(.* at byte 1\)"),
        ("a.txt", b"", "it has no texts"),
        ("a.txt", b"\n \n", "it has no texts"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "line 2 is the list"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"body": "b"}\n',
            "line 2 has no 'text', only body; name its key with --column",
        ),
        ("a.jsonl", b"{}\n", "line 1 has no 'text', only nothing"),
        ("a.jsonl", b'{"text": 5}\n', "'text' of line 1 is the .* 5; it has to be a string"),
        ("a.jsonl", b'{"text": null}\n', "'text' of line 1 is nothing"),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1 (is not JSON|has an unpaired surrogate)"),
        ("a.parquet", b"PAR1 nothing", "it can't be read as Parquet"),
        ("a.csv", b"text\na\n", r"ends with \.txt .*, \.jsonl or \.parquet, or from the package: builtin"),
        ("a", b"text\na\n", r"ends with \.txt"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidConfig, match=said) as caught:
        read_texts(path)
    assert caught.value.uri == str(path)


def test_a_column_of_another_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="column 'id' has the type int64; it has to have strings"):
        read_texts(parquet(tmp_path / "texts.parquet"), "id")


def test_bytes_that_are_no_text_in_parquet_are_named(tmp_path: Path) -> None:
    wrong = pa.array([b"fine", b"b\xe4d"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": wrong}), tmp_path / "texts.parquet")
    with pytest.raises(InvalidConfig, match="row 2 is not UTF-8"):
        read_texts(tmp_path / "texts.parquet")


def test_limits_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = txt(tmp_path / "texts.txt", ["short", "x" * 50])
    monkeypatch.setattr(reading, "MAX_TEXT_NBYTES", 49)
    with pytest.raises(InvalidConfig, match="line 2 has 50 bytes, but a text has at most 49"):
        read_texts(path)
    with pytest.raises(InvalidConfig, match="row 2 has 50 bytes, but a text has at most 49"):
        read_texts(parquet(tmp_path / "texts.parquet", ["short", "x" * 50]))
    monkeypatch.setattr(reading, "MAX_FILE_NBYTES", 55)
    with pytest.raises(InvalidConfig, match="it has 57 bytes, but at most 55 are allowed"):
        read_texts(path)
    monkeypatch.setattr(reading, "MAX_TEXTS", 1)
    with pytest.raises(InvalidConfig, match="more than 1 texts"):
        read_texts(["a", "b"])


def test_a_small_file_that_stands_for_very_much_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "texts.parquet"
    texts = pa.array([f"{'x' * 1000}{number}" for number in range(1000)])
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 50_000
    monkeypatch.setattr(reading, "MAX_TEXTS_NBYTES", 900_000)
    with pytest.raises(
        InvalidConfig, match=r"column 'text' takes 100\d{4} bytes, but at most 900000 are allowed"
    ):
        read_texts(path)


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file of texts"):
        read_texts(tmp_path / "none.txt")


@pytest.mark.parametrize("source", ["builtin", ["a", "b"]])
def test_a_column_of_what_has_none_is_refused(source: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"column is 'text', but .* has no columns"):
        read_texts(source, "text")


@pytest.mark.parametrize(
    ("source", "said"), [([1], r"texts\[0\] is the .* 1"), (5, "texts: must be a string or a path")]
)
def test_other_sources_are_refused(source: Any, said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        read_texts(source)
