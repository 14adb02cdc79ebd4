"""The small files that are copied: all except weights, code, pickles, archives, logs and files that a target has
itself."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from pathlib import Path

import pytest

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.driver.run import quantize
from arrowquant_dist.folder import sidecars
from arrowquant_dist.folder.sidecars import TARGETS_OWN
from arrowquant_dist.target import index, layout, manifest
from tests.folder.places import Put, bin_of, notes_of, put_local, safetensors_of

WEIGHTS = {"model.safetensors": safetensors_of("a")}
COPIED = [
    "1_Pooling/config.json",
    "LICENSE",
    "README.md",
    "additional_chat_templates/tool_use.jinja",
    "audio_tokenizer/config.json",
    "bpe.codes",
    "config.json",
    "configuration.json",
    "data_config.json",
    "dict.txt",
    "emoji.gif",
    "params.json",
    "prompts.yaml",
    "sentencepiece.bpe.model",
    "source.spm",
    "speech_tokenizer/preprocessor_config.json",
    "tag_to_id.csv",
    "target.spm",
    "tekken.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tokenizer/vocab.json",
    "trainer_state.json",
    "unigram.json",
    "vocab.bpe",
    "vocab.ja",
]
NOT_COPIED = [
    ".gitattributes",
    ".cache/huggingface/x.json",
    "__MACOSX/config.json",
    "._config.json",
    "Dockerfile.sh",
    "adapter_config.json",
    "arrow.arrow",
    "checkpoint.pkl",
    "coreml.mlmodel",
    "events.out.tfevents.1700000000.host",
    "flax_model.msgpack",
    "generate.ipynb",
    "libx.so",
    "model.onnx",
    "model.safetensors.index.fp16.json",
    "modeling_x.py",
    "nohup.out",
    "openvino_model.xml",
    "optimizer.pt",
    "other.gguf",
    "run.sh",
    "runs/x/config.json",
    "speech_tokenizer/model.safetensors",
    "speech_tokenizer/modeling.py",
    "src/config.json",
    "tf_model.h5",
    "train.log",
    "training_args.bin",
    "vocab.joblib",
    "wandb.tar.gz",
    "x.zip",
]


def test_files_are_copied_by_exclusion(put: Put) -> None:
    uri = put({**WEIGHTS, **dict.fromkeys([*COPIED, *NOT_COPIED], b"text")})
    assert list(open_checkpoint(uri).sidecars) == sorted(COPIED)


def test_what_is_copied_is_copied_whole(tmp_path: Path) -> None:
    texts = [name for name in COPIED if not name.endswith("g.json")]  # a config's content is looked at
    source = put_local(tmp_path / "model", {**WEIGHTS, **{name: name.encode() for name in texts}})
    quantize(source, str(tmp_path / "out"), QuantizationConfig(), RunConfig(engine="inline"))
    for name in texts:
        assert (tmp_path / "out" / name).read_bytes() == name.encode()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("x"), b"y")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        *(pickle.dumps({"x": [1, 2]}, protocol=protocol) for protocol in range(6)),
        bin_of("a"),
        safetensors_of("a"),
        zipped(),
        gzip.compress(b"x", mtime=0),
        b"#!/bin/sh\nexit 1\n",
        b"\x7fELF\2\1\1\0",
        b"MZ\x90\0\3\0",
        b"GGUF\3\0\0\0",
        b"\x93NUMPY\1\0",
        b"PAR1\0",
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["vocab", "tokenizer.model.v3", "tokenizer/extra.txt"])
def test_the_content_counts_where_the_name_is_wrong(put: Put, name: str, data: bytes) -> None:
    uri = put({**WEIGHTS, name: data})
    assert open_checkpoint(uri).sidecars == ()
    assert f"by their content): {name}" in notes_of(uri)


def test_a_compressed_vocabulary_is_copied(put: Put) -> None:
    uri = put({**WEIGHTS, "bpe_simple_vocab_16e6.txt.gz": gzip.compress(b"a b")})
    assert open_checkpoint(uri).sidecars == ("bpe_simple_vocab_16e6.txt.gz",)


def test_texts_that_begin_like_programs_are_copied(put: Put) -> None:
    files = {
        "MZ.txt": b"MZ is a magic number",
        "x.json": b'{"a": [{}]}',
        "copy.txt": b"copy\nthis",
        "empty": b"",
    }
    assert open_checkpoint(put({**WEIGHTS, **files})).sidecars == tuple(sorted(files))


def test_the_names_of_a_target_are_not_overwritten(tmp_path: Path) -> None:
    own = ["manifest.json", "index.parquet", "run/notes.txt", "report/report.json", "weights/config.json"]
    assert {layout.PLAN_PATH.split("/")[0], layout.WEIGHTS_FOLDER, layout.REPORT_FOLDER} <= set(TARGETS_OWN)
    assert {manifest.MANIFEST_PATH, index.INDEX_PATH} <= set(TARGETS_OWN)
    files = {name: b"{}" for name in [*own, "Manifest.json", "Report"] if name != "index.parquet"}
    source = put_local(tmp_path / "model", {**WEIGHTS, **files})
    report = quantize(source, str(tmp_path / "out"), QuantizationConfig(), RunConfig(engine="inline")).report
    assert (
        "not copied (a target has files of these names itself): Manifest.json, Report, manifest.json"
        in report.notes
    )
    assert (tmp_path / "out/manifest.json").read_bytes() != b"{}"
    assert open_checkpoint(source).sidecars == ()


def test_of_too_many_files_the_known_ones_are_copied_and_the_others_named(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecars, "MAX_SIDECARS", 3)
    many = {f"a{i:03d}.txt": b"x" for i in range(20)}
    uri = put({**WEIGHTS, **many, "tokenizer.json": b"{}", "config.json": b"{}"})
    assert open_checkpoint(uri).sidecars == ("a000.txt", "config.json", "tokenizer.json")
    assert "not copied (too many small files): a001.txt, " in notes_of(uri)
    assert "and 14 more" in notes_of(uri)


def test_of_too_many_bytes_as_well(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecars, "MAX_TOTAL_NBYTES", 10)
    uri = put({**WEIGHTS, "a.txt": b"12345678", "config.json": b"{}", "b.txt": b"1"})
    assert open_checkpoint(uri).sidecars == ("a.txt", "config.json")
    assert "not copied (too many small files): b.txt" in notes_of(uri)


def test_a_large_file_is_named(tmp_path: Path) -> None:
    put_local(tmp_path, WEIGHTS)
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate((32 << 20) + 1)
    assert "not copied (over 32 MiB): tokenizer.json" in open_checkpoint(str(tmp_path)).notes


def test_only_named_folders_are_walked_and_only_so_deep(tmp_path: Path) -> None:
    deep = "/".join("abcdefgh")
    put_local(
        tmp_path,
        {
            **WEIGHTS,
            "tokenizer/a/b/x.json": b"{}",
            f"tokenizer/{deep}/x.json": b"{}",
            "other/a/x.json": b"{}",
        },
    )
    assert open_checkpoint(str(tmp_path)).sidecars == ("tokenizer/a/b/x.json",)
