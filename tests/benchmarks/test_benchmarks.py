"""The benchmarks can be run: every table is built, with sizes that say nothing about speed."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from arrowquant_dist.checkpoint.open import open_checkpoint
from tests.benchmarks import (
    accuracy,
    calibrating,
    compensating,
    exporting,
    files,
    half_quadratic,
    kernels,
    limits,
    loading,
    minilm,
    pages,
    peaks,
    reducing,
    serving,
    sizing,
    streaming,
    verifying,
)
from tests.benchmarks.__main__ import main
from tests.benchmarks.gguf_files import write_gguf
from tests.benchmarks.source import shapes, write_checkpoint
from tests.benchmarks.table import NOT_INSTALLED, Row, Table, at_least, at_most, ratio_of, render

SMALL = 1_500_000


def test_the_program_takes_its_options_and_names_its_sections(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["no-such-section", "--runs", "1"])
    assert ended.value.code == 2
    assert "no section no-such-section; there are minilm, accuracy" in capsys.readouterr().err


def check(tables: Iterable[Table]) -> list[Row]:
    rows = [row for table in tables for row in table.rows]
    assert rows
    assert all(math.isfinite(row.ours) and row.ours > 0 for row in rows)
    return rows


@pytest.mark.slow
def test_a_page_is_measured_in_a_browser_where_there_is_one() -> None:
    names = [row.name for row in check(pages.tables(300, 1))]
    assert names[:2] == ["size", "to write it, CPU"]


@pytest.mark.slow
def test_a_size_is_measured_against_int4_of_as_many_bytes(tmp_path: Path) -> None:
    (row,) = check(sizing.tables(SMALL, 1, str(tmp_path)))
    assert (row.name, row.peer, row.target) == ("--size", "int4 g128 mse", ratio_of(0.5))


@pytest.mark.slow
def test_gptq_is_measured_against_its_paper_s_code_in_torch(capsys: pytest.CaptureFixture[str]) -> None:
    """Both leave an error of the output of the same size, by other scales."""
    (row,) = check(compensating.tables((192,), 1))
    assert (row.name, row.peer, row.target) == ("192×192", "plain torch", ratio_of(1.5))
    ours, theirs = (float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines())
    assert 0.5 * theirs < ours < 1.1 * theirs


@pytest.mark.slow
def test_mse_is_measured_against_hqq_and_has_the_smaller_error(capsys: pytest.CaptureFixture[str]) -> None:
    rows = check(half_quadratic.tables(128, 1))
    solver = "HQQ's solver, written out"
    assert [row.target for row in rows if row.peer == solver] == [ratio_of(50), None, None]
    lines = [line.split(": squared error ") for line in capsys.readouterr().out.splitlines()]
    errors = {name: float(figure.split(" ")[0]) for name, figure in lines}
    for bits, least in ((4, 0.8), (3, 0.6), (2, 0.4)):
        ours, theirs = errors[f"int{bits} g128, mse"], errors[f"int{bits} g128, {solver}"]
        assert least * theirs < ours < theirs


def test_hqq_s_solver_lessens_the_norm_that_it_is_about() -> None:
    """Σ|x - x̂|^0.7, against its start: rounding to nearest with the range's scale."""
    weight = torch.from_numpy(np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32))
    groups = weight.reshape(-1, 128)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = (high - low) / 15
    nearest = (torch.round(groups / scale - low / scale) * scale + low).reshape(weight.shape)
    found = half_quadratic.half_quadratic(weight, 4)()
    assert (found - weight).abs().pow(0.7).sum() < 0.99 * (nearest - weight).abs().pow(0.7).sum()


@pytest.mark.slow
def test_calibrating_is_measured_against_the_forward_passes_and_in_memory(tmp_path: Path) -> None:
    speed, growth = check(calibrating.tables(60, str(tmp_path)))
    assert (speed.name, speed.peer, speed.met) == ("60 texts", "forward passes", True)
    assert (growth.name, growth.met) == ("40 blocks", True)


@pytest.mark.slow
def test_kernels_are_measured_against_every_peer_that_is_installed() -> None:
    rows = check(kernels.tables(128, 1))
    assert {
        "int8 per channel rtn, median",
        "int8 → float32, best",
        "int2 g128 asymmetric → float32, best",
    } <= {r.name for r in rows}
    plain = next(row for row in rows if row.peer == "torch abs().amax → round → clamp")
    assert plain.ratio == plain.ours / (plain.theirs or 0)


@pytest.mark.slow
def test_files_are_measured_against_a_plain_copy(tmp_path: Path) -> None:
    rows = check(files.tables(SMALL, 1, str(tmp_path)))
    assert any(row.peer.startswith("plain copy") and row.theirs for row in rows)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_minilm_reaches_the_accuracy_and_size_of_int8() -> None:
    rows = check(minilm.tables(["int8"]))
    assert [row.name for row in rows if row.met is False] == []


@pytest.mark.slow
def test_minilm_keeps_at_4_bits_what_the_table_says_and_more_than_at_3() -> None:
    ways = [way for way in accuracy.WAYS if way.name in {"int4 g128", "int3 g128"}]
    tables = [*accuracy.minilm_tables(None, ways)]
    rows = check(tables)
    assert [row.name for row in rows if row.met is False] == []
    four, three = (table.rows for table in tables)
    assert [row.name for row in four] == [
        "stored",
        *(f"builtin:held-back: {of}" for of in ("mean", "5th percentile")),
    ]
    assert all(more.ours > less.ours for more, less in zip(four, three, strict=True))


@pytest.mark.slow
def test_codes_in_memory_are_measured_against_float32() -> None:
    rows = check(serving.tables(256, 1))
    assert {"int4 g128 with zero points", "int2", "int2: resident above the process's before"} <= {
        row.name for row in rows
    }
    assert all(row.met is not None for row in rows if row.unit == "MB")


@pytest.mark.slow
def test_loading_is_measured_against_safetensors_and_a_plain_read(tmp_path: Path) -> None:
    rows = check(loading.tables(1, 1 << 20, str(tmp_path)))
    assert {row.peer for row in rows} == {"load_file of fp16, .float()", "decoding alone", "cat"}
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_streams_from_an_object_store_are_measured_without_the_peer_too(tmp_path: Path) -> None:
    rows = check(streaming.tables(SMALL, 1, str(tmp_path), sys.executable))
    assert [row.name for row in rows] == [
        f"codes, {way}, verified" for way in ("none", "none", "zstd", "zstd")
    ]
    assert [row.theirs is not None for row in rows] == [False, True] * 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_exports_are_measured_against_copies_of_their_bytes(tmp_path: Path) -> None:
    rows = check(exporting.tables(1, 1, str(tmp_path), ("compressed-tensors",)))
    copied = [row for row in rows if row.peer == "copy"]
    assert len(copied) == 4
    limits_of_rate = [
        row for row in rows if row.peer == "read, decompress, verify, write, hash" and row.unit == "MB/s"
    ]
    assert [row.target for row in limits_of_rate] == [ratio_of(0.9)] * 2
    assert all(row.theirs for row in [*copied, *limits_of_rate])
    assert [row.target.value for row in rows if row.target and row.target.at_most] == [
        *(128, 320, 1088, 128, 320, 1088),  # of codes as they are
        128,  # of decoded values
        *(192, 320, 1088),  # bucket to bucket
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["llama-1-w4a16"]


@pytest.mark.slow
def test_peaks_are_measured_on_disk_and_on_a_server(tmp_path: Path) -> None:
    """A loader's process grows by no more than its budget and 32 MiB, with allocators as they are."""
    rows = check(peaks.tables([64], str(tmp_path)))
    assert [row.name for row in rows] == ["local, none", "S3, none", "local, zstd", "S3, zstd"]
    assert [row.name for row in rows if row.met is False] == []
    assert not list(tmp_path.iterdir())


def test_limits_of_the_machine_are_measured(tmp_path: Path) -> None:
    assert len(check(limits.tables(1 << 16, 1, str(tmp_path)))) == 7


def test_the_checkpoint_is_the_same_every_time_and_a_valid_one(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    counts = {write_checkpoint(path, SMALL) for path in paths}
    assert paths[0].read_bytes() == paths[1].read_bytes()
    layers = open_checkpoint(str(paths[0])).layers
    assert {layer.name: layer.shape for layer in layers} == shapes(SMALL)
    assert counts == {sum(int(np.prod(layer.shape)) for layer in layers)}


def test_a_checkpoint_of_the_size_asked_for() -> None:
    params = sum(int(np.prod(shape)) for shape in shapes(750_000_000).values())
    assert abs(params - 750_000_000) < 30_000_000


def test_llama_cpp_gets_the_same_values(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    source, target = tmp_path / "model.safetensors", tmp_path / "model.gguf"
    write_checkpoint(source, SMALL)
    write_gguf(source, target, SMALL)
    tensors = gguf.GGUFReader(target).tensors
    assert len(tensors) == len(shapes(SMALL))
    written = b"".join(tensor.data.tobytes() for tensor in tensors)
    assert source.read_bytes().endswith(written)


def test_a_peer_that_is_not_installed_is_said_to_be_so_and_fails_nothing() -> None:
    row = Row("int8", 100.0, "Mparam/s", "torchao", None, ratio_of(25))
    assert row.met is None
    assert NOT_INSTALLED in render(Table("Kernels", (row,)))


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (Row("rate", 10.0, "", "peer", 2.0, ratio_of(5)), True),
        (Row("rate", 9.9, "", "peer", 2.0, ratio_of(5)), False),
        (Row("cosine", 0.9, "", target=at_least(0.9)), True),
        (Row("memory", 1025.0, "MiB", target=at_most(1024)), False),
        (Row("no target", 1.0, ""), None),
    ],
)
def test_a_target_is_met_or_not(row: Row, *, met: bool | None) -> None:
    assert row.met is met


def test_the_driver_of_a_run_whose_shards_are_committed_is_measured(tmp_path: Path) -> None:
    (table,) = reducing.tables(2000, str(tmp_path))
    rows = {row.name: row.ours for row in table.rows}
    assert "200 shards of 2,000 layers" in table.title
    assert 0 < rows["peak memory of the process"] < 1
    phases = [seconds for name, seconds in rows.items() if name.startswith("of the wall")]
    assert len(phases) == 3
    assert sum(phases) <= rows["wall, with report and manifest"]


@pytest.mark.slow
def test_verifying_is_measured_on_as_many_parts_as_asked_for(tmp_path: Path) -> None:
    (table,) = verifying.tables(8, str(tmp_path))
    assert table.title == "verify of 800 rows in 8 parts"
    assert {row.name: row.theirs for row in table.rows}["CPU a row"]
