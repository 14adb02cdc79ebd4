"""What may be at the output before an export begins: nothing, its own earlier files, and never those of another."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arrowquant_dist import RunConfig
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.errors import (
    ArrowQuantError,
    IncompleteDataset,
    InvalidCheckpoint,
    InvalidConfig,
    TargetConflict,
)
from arrowquant_dist.export import ExportOptions, export_dataset, plan_export
from arrowquant_dist.export.options import ExportFormatName
from arrowquant_dist.export.record import ExportRecord
from arrowquant_dist.export.worker import ExportWorker
from tests.export.datasets import loaded, made_dataset, same, tensors_of
from tests.sources import random_weights, save_checkpoint

RUN = RunConfig(engine="inline", workers=1)
OPTIONS = ExportOptions(max_file_bytes="1MiB")
OVERWRITE = ExportOptions(max_file_bytes="1MiB", overwrite=True)
_OTHER_VERSION = "another version of arrowquant-dist began .* finish it with that version, .* --overwrite"
SIDE_FILES = {"config.json": b'{"a": 1}', "README.md": b"# a model"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    tensors = random_weights(3, 512, 512, torch.float32)
    return made_dataset(tmp_path_factory.mktemp("place"), tensors, side_files=SIDE_FILES)


def state_of(out: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in out.rglob("*") if path.is_file()]
    return {path.relative_to(out).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_finished_export_says_so_and_stays_as_it_is(dataset: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = export_dataset(dataset, out, OPTIONS, RUN)
    before = state_of(out)
    again = export_dataset(dataset, out, OPTIONS, RUN.replace(workers=3))
    assert (first.already_finished, again.already_finished) == (False, True)
    assert again.record == first.record
    assert state_of(out) == before


def test_the_record_lists_every_file_with_its_hash(dataset: str, tmp_path: Path) -> None:
    import xxhash

    export_dataset(dataset, tmp_path / "out", OPTIONS, RUN)
    record = json.loads((tmp_path / "out/export.json").read_text())
    files = {file["path"]: (file["nbytes"], file["hash"]) for file in record["files"]}
    there = {path: data for path, (data, _) in state_of(tmp_path / "out").items() if path != "export.json"}
    assert files == {
        path: (len(data), f"xxh3_128:{xxhash.xxh3_128_hexdigest(data)}") for path, data in there.items()
    }
    assert (record["kind"], record["format"]) == ("arrowquant-export", "safetensors")
    assert record["origin"]["dataset"] == dataset


def test_equal_exports_write_equal_bytes_wherever_the_dataset_lies(dataset: str, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "moved")
    for target, name, workers in ((dataset, "a", 1), (str(tmp_path / "moved"), "b", 3)):
        export_dataset(target, tmp_path / name, OPTIONS, RUN.replace(workers=workers))
    first, second = ({p: data for p, (data, _) in state_of(tmp_path / name).items()} for name in "ab")
    assert first.pop("export.json") != second.pop("export.json")  # they name the dataset's place
    assert first == second


def _put(kind: str, place: Path) -> None:
    if kind == "folder":
        place.mkdir()
    elif kind == "FIFO":
        os.mkfifo(place)
    else:
        place.symlink_to("nowhere")


@pytest.mark.parametrize("kind", ["folder", "FIFO", "link to nothing"])
@pytest.mark.parametrize("path", ["weights", "config.json", "export.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_file_in_the_place_of_one_is_refused_and_left_alone(
    dataset: str, tmp_path: Path, kind: str, path: str, *, overwrite: bool
) -> None:
    out = tmp_path / "out"
    if path == "weights":
        path = plan_export(dataset, out, OPTIONS, RUN).output.weights[0].path
    out.mkdir()
    _put(kind, out / path)
    with pytest.raises(TargetConflict) as raised:
        export_dataset(dataset, out, OVERWRITE if overwrite else OPTIONS, RUN)
    assert raised.value.exit_code == 2
    assert [found.name for found in out.iterdir()] == [path]


@pytest.mark.parametrize("path", SIDE_FILES)
@pytest.mark.parametrize("instead", ["nothing", "folder"])
def test_a_small_file_that_the_dataset_has_lost_is_missed_before_anything_is_written(
    dataset: str, tmp_path: Path, path: str, instead: str
) -> None:
    lost = Path(shutil.copytree(dataset, tmp_path / "dataset")) / path
    lost.unlink()
    if instead == "folder":
        lost.mkdir()
    with pytest.raises(IncompleteDataset, match=rf"{path}: listed in its manifest, but not there"):
        export_dataset(str(tmp_path / "dataset"), tmp_path / "out", OPTIONS, RUN)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_others_is_refused_or_left_alone(dataset: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "more").mkdir(parents=True)
    for path in ("mine.gguf", "notes.txt", "more/model.safetensors"):
        (out / path).write_text("mine")
    before = state_of(out)
    with pytest.raises(
        TargetConflict, match=r"other files \(mine\.gguf, more/model\.safetensors, notes\.txt\)"
    ):
        export_dataset(dataset, out, OPTIONS, RUN)
    assert state_of(out) == before
    export_dataset(dataset, out, OVERWRITE, RUN)  # its files have other names
    assert {path: state for path, state in state_of(out).items() if path in before} == before


def test_weights_that_programs_would_take_for_the_model_s_are_refused_also_where_all_else_is_overwritten(
    dataset: str, tmp_path: Path
) -> None:
    """transformers opens a model.safetensors whatever the index beside it says."""
    out, said = tmp_path / "out", r"weights that no export wrote \(model\.safetensors\)"
    export_dataset(dataset, out, OPTIONS, RUN)
    (out / "export.json").unlink()
    save_checkpoint(out, {"mine": torch.ones(3)})
    before = state_of(out)
    for options in (OPTIONS, OVERWRITE):
        with pytest.raises(TargetConflict, match=said):
            export_dataset(dataset, out, options, RUN)
    assert state_of(out) == before


@pytest.mark.parametrize("spelling", ["file://{}/out", "{}/a/../out", "~/out"])
def test_an_output_in_the_dataset_is_refused_however_it_is_spelled(
    dataset: str, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", dataset)
    with pytest.raises(InvalidConfig, match="one is inside the other"):
        export_dataset(dataset, spelling.format(dataset), OPTIONS, RUN)
    assert not (Path(dataset) / "out").exists()


def test_a_link_to_itself_and_a_name_that_is_too_long_are_one_sentence(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name, said in (("loop", "a link to loop"), ("n" * 300, "a name is longer than this system allows")):
        with pytest.raises(ArrowQuantError, match=said):
            export_dataset(dataset, tmp_path / name, OPTIONS, RUN)


def test_another_s_file_in_the_place_of_one_is_never_replaced(dataset: str, tmp_path: Path) -> None:
    for options in (ExportOptions(), ExportOptions(overwrite=True)):
        save_checkpoint(tmp_path / "out", {"mine": torch.ones(3)})
        before = state_of(tmp_path / "out")
        with pytest.raises(TargetConflict, match=r"model\.safetensors: a different file .* has \d+ bytes"):
            export_dataset(dataset, tmp_path / "out", options, RUN)
        assert state_of(tmp_path / "out") == before


def test_one_of_the_same_size_is_told_by_its_mark(dataset: str, tmp_path: Path) -> None:
    export_dataset(dataset, tmp_path / "out", OPTIONS, RUN)
    file = tmp_path / "out/model-00001-of-00004.safetensors"
    data = bytearray(file.read_bytes())
    place = data.index(b"xxh3_128:") + 9
    data[place : place + 4] = b"0000" if data[place : place + 4] != b"0000" else b"1111"
    (tmp_path / "out/export.json").unlink()
    file.write_bytes(data)
    with pytest.raises(TargetConflict, match="same size"):
        export_dataset(dataset, tmp_path / "out", OPTIONS, RUN)
    export_dataset(dataset, tmp_path / "out", OVERWRITE, RUN)
    assert same(tensors_of(tmp_path / "out"), loaded(dataset))


def test_a_small_file_of_others_is_refused_before_the_first_byte(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_bytes(b"{}")
    for options in (OPTIONS, OVERWRITE):
        with pytest.raises(TargetConflict, match=r"config\.json: this is not the file"):
            export_dataset(dataset, tmp_path / "out", options, RUN)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("other", "difference"),
    [(ExportOptions("v1"), "format: v1 there, safetensors here"), (ExportOptions(), "max_file_bytes")],
)
def test_another_export_is_refused_with_what_differs_and_overwritten_alone(
    dataset: str, tmp_path: Path, other: ExportOptions, difference: str
) -> None:
    out = tmp_path / "out"
    export_dataset(dataset, out, other, RUN)
    (out / "mine.txt").write_text("mine")
    before = state_of(out)
    with pytest.raises(TargetConflict, match=difference):
        export_dataset(dataset, out, OPTIONS, RUN)
    assert state_of(out) == before
    export_dataset(dataset, out, OVERWRITE, RUN)
    export_dataset(dataset, tmp_path / "fresh", OPTIONS, RUN)
    assert {path: data for path, (data, _) in state_of(out).items()} == {
        **{path: data for path, (data, _) in state_of(tmp_path / "fresh").items()},
        "mine.txt": b"mine",
    }


def test_of_another_s_options_those_that_differ_are_named(dataset: str, tmp_path: Path) -> None:
    export_dataset(dataset, tmp_path / "out", OPTIONS, RUN)
    written = ExportRecord.from_bytes((tmp_path / "out/export.json").read_bytes(), "")
    there = replace(written, options={"activations": False, "requantize": True})
    here = replace(there, mark="another", options={"activations": False, "requantize": False})
    assert there.differences(here) == ["requantize: True there, False here"]
    assert there.differences(replace(here, format="v1", options={})) == ["format: safetensors there, v1 here"]


def other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("record", "mark"):
        monkeypatch.setattr(f"arrowquant_dist.export.{module}.export_digest", lambda: "0123456789abcdef")


@pytest.mark.parametrize("form", ["safetensors", "v1"])
def test_an_export_that_another_version_began_is_not_completed_and_called_that(
    dataset: str, tmp_path: Path, form: ExportFormatName, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "out", replace(OPTIONS, format=form)
    export_dataset(dataset, out, options, RUN)
    (out / "export.json").unlink()  # as one that was stopped
    other_code(monkeypatch)
    before = state_of(out)
    with pytest.raises(TargetConflict, match=_OTHER_VERSION):
        export_dataset(dataset, out, options, RUN)
    with pytest.raises(TargetConflict, match=_OTHER_VERSION):  # whose files have other sizes
        export_dataset(dataset, out, replace(options, max_file_bytes="2MiB"), RUN)
    assert state_of(out) == before
    export_dataset(dataset, out, replace(options, overwrite=True), RUN)
    assert same(tensors_of(out), loaded(dataset)) or form == "v1"
    assert before.keys() < state_of(out).keys()


def test_a_mark_without_a_version_is_one_of_a_release_before(dataset: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_dataset(dataset, out, OPTIONS, RUN)
    (out / "export.json").unlink()
    file = out / "model-00001-of-00004.safetensors"
    mark = f"xxh3_128:{'0' * 32}".encode()
    file.write_bytes(re.sub(rb"xxh3_128:[0-9a-f]{32}-[0-9a-f]{16}", mark, file.read_bytes()))
    with pytest.raises(TargetConflict, match=_OTHER_VERSION):
        export_dataset(dataset, out, OPTIONS, RUN)


def test_what_another_export_has_begun_is_named_and_overwritten(dataset: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_dataset(dataset, out, OPTIONS, RUN)
    for path in ("export.json", "config.json", "README.md", "model.safetensors.index.json"):
        (out / path).unlink()
    before = state_of(out)
    said = r"files of another export that was not finished \(model-00001-of-00004.safetensors, .*or use --overwrite"
    with pytest.raises(TargetConflict, match=said):
        export_dataset(dataset, out, ExportOptions("v1"), RUN)
    assert state_of(out) == before
    export_dataset(dataset, out, ExportOptions("v1", overwrite=True), RUN)
    export_dataset(dataset, tmp_path / "fresh", ExportOptions("v1"), RUN)
    assert state_of(out).keys() == state_of(tmp_path / "fresh").keys()


def test_an_export_that_other_code_has_finished_is_finished_unless_files_are_gone(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export_dataset(dataset, out, OPTIONS, RUN)
    other_code(monkeypatch)
    before = state_of(out)
    assert export_dataset(dataset, out, OPTIONS, RUN).already_finished
    with pytest.raises(TargetConflict, match=r"\(max_file_bytes: 1048576 there, 2097152 here\)"):
        export_dataset(dataset, out, ExportOptions(max_file_bytes="2MiB"), RUN)
    assert state_of(out) == before
    (out / "README.md").unlink()
    with pytest.raises(
        TargetConflict, match=r"another version of the code made it, and it has lost README\.md"
    ):
        export_dataset(dataset, out, OPTIONS, RUN)
    assert not export_dataset(dataset, out, OVERWRITE, RUN).already_finished


def test_a_file_of_a_finished_export_that_is_gone_is_made_again(dataset: str, tmp_path: Path) -> None:
    export_dataset(dataset, tmp_path / "out", OPTIONS, RUN)
    before = state_of(tmp_path / "out")
    for name in ("model-00002-of-00004.safetensors", "README.md"):
        (tmp_path / "out" / name).unlink()
        assert not export_dataset(dataset, tmp_path / "out", OPTIONS, RUN).already_finished
        assert {path: data for path, (data, _) in state_of(tmp_path / "out").items()} == {
            path: data for path, (data, _) in before.items()
        }


def test_a_record_that_is_none_is_refused(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for content, said in ((b"{}", "not the record"), (b"[1", "not the record")):
        (tmp_path / "out/export.json").write_bytes(content)
        with pytest.raises(TargetConflict, match=said):
            export_dataset(dataset, tmp_path / "out", OPTIONS, RUN)


@pytest.mark.parametrize("place", ["dataset", "dataset/out", "."])
def test_an_output_in_the_dataset_or_around_it_is_refused(tmp_path: Path, place: str) -> None:
    dataset = made_dataset(tmp_path / "a", {"w": torch.ones(2, 2)})
    with pytest.raises(InvalidConfig, match="one is inside the other"):
        export_dataset(dataset, tmp_path / "a" / place, OPTIONS, RUN)


def test_a_checkpoint_is_no_dataset(tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "source", {"w": torch.ones(2, 2)})
    with pytest.raises(InvalidConfig, match="not a dataset; quantize it first"):
        export_dataset(source, tmp_path / "out", OPTIONS, RUN)


def test_to_plan_writes_nothing(dataset: str, tmp_path: Path) -> None:
    planned = plan_export(dataset, tmp_path / "out", OPTIONS, RUN)
    assert planned.output.weights[0].path == "model-00001-of-00004.safetensors"
    assert not (tmp_path / "out").exists()


def test_two_drivers_at_once_end_in_one_output(dataset: str, tmp_path: Path) -> None:
    start, failed = threading.Barrier(2), list[ArrowQuantError]()

    def drive() -> None:
        start.wait()
        try:
            export_dataset(dataset, tmp_path / "out", OPTIONS, RUN.replace(workers=2))
        except ArrowQuantError as error:
            failed.append(error)

    drivers = [threading.Thread(target=drive) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert not failed
    export_dataset(dataset, tmp_path / "quiet", OPTIONS, RUN)
    assert {path: data for path, (data, _) in state_of(tmp_path / "out").items()} == {
        path: data for path, (data, _) in state_of(tmp_path / "quiet").items()
    }


def test_a_worker_that_slept_while_another_export_was_finished_leaves_nothing_in_it(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, own = tmp_path / "out", ExportWorker.run

    def sleeping(*arguments: Any) -> Any:
        monkeypatch.setattr(ExportWorker, "run", own)
        export_dataset(dataset, out, ExportOptions("v1", overwrite=True), RUN)
        return own(*arguments)

    monkeypatch.setattr(ExportWorker, "run", sleeping)
    with pytest.raises(ArrowQuantError, match="another export was finished here in the meantime"):
        export_dataset(dataset, out, OPTIONS, RUN)
    export_dataset(dataset, tmp_path / "alone", ExportOptions("v1"), RUN)
    assert {p: data for p, (data, _) in state_of(out).items()} == {
        p: data for p, (data, _) in state_of(tmp_path / "alone").items()
    }


def test_an_export_with_another_s_weights_beside_its_own_is_not_finished(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, own = tmp_path / "out", ExportWorker.run
    export_dataset(dataset, tmp_path / "other", ExportOptions(), RUN)

    def beside(*arguments: Any) -> Any:
        receipt = own(*arguments)
        shutil.copy(tmp_path / "other/model.safetensors", out)
        return receipt

    monkeypatch.setattr(ExportWorker, "run", beside)
    with pytest.raises(
        TargetConflict, match=r"another export wrote here at the same time \(model\.safetensors\)"
    ):
        export_dataset(dataset, out, OPTIONS, RUN)
    assert not {"export.json", "config.json", "model.safetensors.index.json"} & state_of(out).keys()
    monkeypatch.setattr(ExportWorker, "run", own)
    export_dataset(dataset, out, OVERWRITE, RUN)
    assert same(tensors_of(out), loaded(dataset))


@pytest.mark.parametrize("output_format", ["safetensors", "v1"])
def test_an_output_where_no_folder_can_be_made_is_said_to_be_one(
    dataset: str, output_format: ExportFormatName
) -> None:
    for out in ("/proc/x", "/proc/x/y"):
        with pytest.raises(ArrowQuantError, match=r"choose another place \(no folder can be made in /proc\)"):
            export_dataset(dataset, out, ExportOptions(output_format), RUN)


def test_an_export_that_has_not_finished_is_no_source(dataset: str, tmp_path: Path) -> None:
    export_dataset(dataset, str(tmp_path / "out"), ExportOptions("safetensors"), RUN)
    layers = open_checkpoint(str(tmp_path / "out")).layers
    for path in (tmp_path / "out").iterdir():
        if path.suffix != ".safetensors":
            path.unlink()
    with pytest.raises(InvalidCheckpoint, match=r"an unfinished export.*the same export command"):
        open_checkpoint(str(tmp_path / "out"))
    (tmp_path / "out/config.json").write_text("{}")  # somebody's copy of a finished one
    assert len(open_checkpoint(str(tmp_path / "out")).layers) == len(layers)
