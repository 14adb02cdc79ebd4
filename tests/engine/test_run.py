from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

from arrowquant_dist.engine.run import raise_failures
from arrowquant_dist.errors import (
    ArrowQuantError,
    CorruptWeights,
    Interrupted,
    InvalidConfig,
    PartialRun,
    SourceChanged,
    StorageError,
    UnquantizableWeights,
)

NAN = UnquantizableWeights("NaN at index [1]", layer="a")
INF = UnquantizableWeights("inf at index [2]", layer="b")
FULL = StorageError("the disk is full")
BUG = ZeroDivisionError("division by zero")


@dataclass(frozen=True)
class Block:
    layer_name: str
    is_first: bool = True
    source_nbytes: int = 1


@dataclass(frozen=True)
class File:
    """A job. label: its name, as people know it."""

    index: int
    noun: str = "shard"
    name: str = ""

    @property
    def label(self) -> str:
        return self.name or str(self.index)

    @property
    def blocks(self) -> Sequence[Block]:
        return [Block(f"{self.index}.first"), Block(f"{self.index}.middle"), Block(f"{self.index}.last")]

    @property
    def source_nbytes(self) -> int:
        return 3


SHARDS = [File(index) for index in range(9)]


def raised(failures: Mapping[int, Exception], jobs: Sequence[File] = SHARDS) -> ArrowQuantError:
    with pytest.raises(ArrowQuantError) as found:
        raise_failures(failures, jobs)
    return found.value


def test_no_failure_raises_nothing() -> None:
    raise_failures({}, SHARDS)


@pytest.mark.parametrize("error", [NAN, FULL, BUG])
def test_one_failure_is_raised_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        raise_failures({4: error}, SHARDS)
    assert raised.value is error


def test_several_bad_layers_are_one_bad_input_that_names_them_all() -> None:
    with pytest.raises(UnquantizableWeights, match=r"2 of 9 shards failed: .*'a'.*'b'") as raised:
        raise_failures({1: NAN, 2: INF}, SHARDS)
    assert raised.value.exit_code == 2


def test_bad_input_beside_a_full_disk_is_a_partial_run_that_names_both() -> None:
    with pytest.raises(PartialRun, match=r"NaN.*disk is full.*the same command resumes") as raised:
        raise_failures({1: NAN, 2: FULL}, SHARDS)
    assert raised.value.exit_code == 1


def test_a_bug_is_never_hidden_behind_errors_that_were_meant() -> None:
    with pytest.raises(ZeroDivisionError):
        raise_failures({1: NAN, 2: BUG}, SHARDS)


def test_what_stopped_the_others_is_named_rather_than_that_they_stopped() -> None:
    with pytest.raises(PartialRun, match="disk is full"):
        raise_failures({1: Interrupted("stopped"), 2: FULL}, SHARDS)


def test_a_reason_that_many_shards_have_is_told_once_with_the_shards() -> None:
    error = raised({index: StorageError("the disk is full") for index in (7, 1, 2, 3, 4, 5, 6)})
    said = "7 of 9 shards failed: the disk is full (shards 1, 2, 3, 4, 5 and 2 more); "
    assert str(error) == f"{said}finished shards are kept, the same command resumes"
    assert (error.kind, error.exit_code) == ("partial-run", 1)


def test_equal_reasons_at_several_places_are_one_that_lists_the_places() -> None:
    error = raised({i: UnquantizableWeights("all values are NaN", layer=f"layers.{i}.w") for i in (1, 2, 8)})
    places = "layer 'layers.1.w', layer 'layers.2.w', layer 'layers.8.w'"
    assert str(error) == f"3 of 9 shards failed: {places}: all values are NaN (shards 1, 2, 8)"
    assert (error.kind, error.exit_code) == ("unquantizable-weights", 2)
    assert (error.layer, error.uri) == (None, None)


def test_the_place_that_all_failures_have_is_the_error_s_own() -> None:
    error = raised({i: CorruptWeights("cut off", uri="s3://b/w", byte_range=(4, 8)) for i in (0, 3)})
    said = json.loads(json.dumps(error.to_dict()))
    assert said["message"].startswith("s3://b/w, bytes 4-8: 2 of 9 shards failed: cut off (shards 0, 3); ")
    assert (said["kind"], said["uri"], said["byte_range"]) == ("partial-run", "s3://b/w", [4, 8])


def test_reasons_that_differ_are_told_side_by_side_each_with_its_shards() -> None:
    error = raised({0: FULL, 1: NAN, 2: StorageError("the disk is full"), 5: INF})
    assert str(error).startswith(
        "4 of 9 shards failed: the disk is full (shards 0, 2); layer 'a': NaN at index [1] (shard 1); "
        "layer 'b': inf at index [2] (shard 5); finished shards"
    )


def test_a_message_of_another_class_is_another_reason() -> None:
    error = raised({0: InvalidConfig("no"), 1: UnquantizableWeights("no")})
    assert (
        error.message
        == "2 of 9 shards failed: no (shard 0, '0.first' … '0.last'); no (shard 1, '1.first' … '1.last')"
    )
    assert error.exit_code == 2


def test_what_to_do_is_told_once_for_all_reasons_that_end_with_it() -> None:
    nans = [
        UnquantizableWeights(f"NaN at index [{i}]; fix the source; or keep it", layer="a") for i in (1, 2)
    ]
    error = raised({0: nans[0], 1: nans[1]})
    assert str(error) == (
        "layer 'a': 2 of 9 shards failed: NaN at index [1]; fix the source; or keep it (shard 0); "
        "NaN at index [2] (shard 1)"
    )


def test_hundreds_of_reasons_stay_one_short_message() -> None:
    many = [File(index) for index in range(400)]
    error = raised({job.index: StorageError(f"reason {job.index} " + "x" * 500) for job in many}, many)
    assert "; and 395 other reasons; finished shards are kept" in error.message
    assert len(error.message) < 2000


def test_files_of_an_export_are_named_as_files() -> None:
    files = [File(i, "file", f"model-{i + 1:05d}-of-00003.safetensors") for i in range(3)]
    error = raised({i: StorageError("access denied") for i in (0, 2)}, files)
    named = "model-00001-of-00003.safetensors, model-00003-of-00003.safetensors"
    assert error.message == (
        f"2 of 3 files failed: access denied (files {named}); finished files are kept, the same command resumes"
    )


def test_a_job_whose_workers_were_lost_is_named_though_it_is_the_only_one() -> None:
    error = raised(
        {3: PartialRun("the worker was lost in each of 4 attempts (last: died); look at Ray's logs")}
    )
    assert error.message == (
        "1 of 9 shards failed: the worker was lost in each of 4 attempts (last: died); look at Ray's logs "
        "(shard 3, '3.first' … '3.last'); finished shards are kept, the same command resumes"
    )


def test_a_changed_file_that_many_shards_met_is_told_as_one_met_it() -> None:
    changed = [SourceChanged("the file changed", uri="/a") for _ in range(2)]
    assert raised({0: changed[0], 1: changed[1]}) is changed[0]
