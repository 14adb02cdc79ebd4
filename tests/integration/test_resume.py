"""A run that is stopped, killed or run twice ends, by the same command, with the dataset of an undisturbed one."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.datasets import manifest_of, weights_of
from tests.held_worker import begun, hold_at
from tests.integration.program import (
    call,
    commits,
    end,
    is_published,
    parts,
    run,
    start,
    wait_for,
    write_checkpoint,
)

CONFIG = """
quant_type: int4
per_channel: false
group_size: 64
symmetric: false
run: {block_bytes: 256KiB, shard_bytes: 1MiB, workers: 1}
"""
HELD = """
from arrowquant_dist.worker import shard
from tests.held_worker import HeldWorker
shard.ShardWorker = HeldWorker
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and a config that makes a run of 20 shards of it."""
    folder = tmp_path_factory.mktemp("resume")
    write_checkpoint(folder / "source" / "model.safetensors", 19, 512, 512)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def quiet(place: Path) -> Path:
    """The target of an undisturbed run."""
    target = place / "quiet"
    done = call(*command(place, target))
    assert done.returncode == 0, done.stderr
    return target


def shards(target: Path) -> int:
    return len(manifest_of(target)["parts"])


def command(place: Path, target: Path, *more: object) -> tuple[object, ...]:
    return "quantize", place / "source", target, "--config", place / "config.yaml", *more


def stop_midway(place: Path, target: Path, how: signal.Signals) -> tuple[int, str]:
    """Exit code and stderr of a run that got the signal after its third commit."""
    hold_at(str(target), 3)
    process = start(*command(place, target), before=HELD)
    wait_for(lambda: commits(target) >= 3, process)
    process.send_signal(how)
    done = end(process)
    assert not is_published(target)
    return done.returncode, done.stderr


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(place: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    code, err = stop_midway(place, target, signal.SIGINT)
    assert code == 130
    assert "same command" in err.splitlines()[-1]
    assert "Traceback" not in err
    # Nothing is left of the shard that it was at.
    assert len(parts(target)) == commits(target)
    verified = call("verify", target)
    assert verified.returncode != 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_the_same_command_again_makes_the_dataset_of_an_undisturbed_run(
    place: Path, quiet: Path, tmp_path: Path, how: signal.Signals
) -> None:
    target = tmp_path / "target"
    stop_midway(place, target, how)
    finished = {
        f.name: f.stat().st_mtime_ns for f in (target / "run" / "commits").iterdir() if f.suffix == ".json"
    }
    again = run(*command(place, target, "--json"))
    assert again.returncode == 0, again.stderr
    values = json.loads(again.stdout)
    assert not values["already_finished"]
    assert values["report"]["run"]["resumed_shards"] == sorted(int(name.split(".")[0]) for name in finished)
    for name, modified in finished.items():  # these were not done again
        assert (target / "run" / "commits" / name).stat().st_mtime_ns == modified
    assert weights_of(target) == weights_of(quiet)
    assert len(parts(target)) == shards(quiet)  # what the killed run left behind is gone
    assert call("verify", target).returncode == 0


def test_a_finished_target_says_so_and_stays_as_it_is(place: Path, quiet: Path) -> None:
    before = {f: f.stat().st_mtime_ns for f in quiet.rglob("*") if f.is_file()}
    again = call(*command(place, quiet))
    assert again.returncode == 0
    assert "finished already" in again.stdout
    assert {f: f.stat().st_mtime_ns for f in quiet.rglob("*") if f.is_file()} == before


def test_workers_and_engine_are_no_other_plan(place: Path, quiet: Path) -> None:
    assert "finished already" in call(*command(place, quiet, "--workers", 2, "--engine", "inline")).stdout


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--group-size", 128), "group_size"),
        (("--quant", "int2"), "quant_type"),
        (("--symmetric",), "symmetric"),
    ],
)
def test_another_config_is_refused_and_what_differs_is_named(
    place: Path, quiet: Path, options: tuple[object, ...], named: str
) -> None:
    before = sorted(parts(quiet))
    refused = call(*command(place, quiet, *options))
    assert refused.returncode == 2
    assert named in refused.stderr
    assert "--overwrite" in refused.stderr
    assert sorted(parts(quiet)) == before
    assert call(*command(place, quiet, *options, "--dry-run")).returncode == 2


def test_another_source_is_refused(place: Path, quiet: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other" / "model.safetensors", 1, 64, 64)
    refused = call("quantize", other, quiet, "--config", place / "config.yaml")
    assert refused.returncode == 2
    assert "another plan" in refused.stderr


def test_overwrite_replaces_the_dataset(tmp_path: Path) -> None:
    source, target = write_checkpoint(tmp_path / "m.safetensors", 3, 64, 64), tmp_path / "target"
    assert call("quantize", source, target).returncode == 0
    first = weights_of(target)
    assert call("quantize", source, target, "--quant", "int4").returncode == 2
    assert weights_of(target) == first
    replaced = call("quantize", source, target, "--quant", "int4", "--overwrite")
    assert replaced.returncode == 0, replaced.stderr
    assert call("verify", target).returncode == 0
    second = weights_of(target)
    assert second.keys() == first.keys()
    assert len(second["layers.0.weight", 0][0]) * 2 == len(first["layers.0.weight", 0][0])
    assert len(parts(target)) == len(manifest_of(target)["parts"])


def test_two_drivers_on_one_target_end_in_one_dataset(place: Path, quiet: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    hold_at(str(target), 0)
    drivers = [start(*command(place, target), before=HELD) for _ in range(2)]
    wait_for(lambda: len(begun(str(target))) == 2, drivers[0])
    hold_at(str(target), sys.maxsize)
    both = [end(driver) for driver in drivers]
    assert [done.returncode for done in both] == [0, 0], [done.stderr for done in both]
    assert weights_of(target) == weights_of(quiet)
    assert len(parts(target)) == shards(quiet)
    assert call("verify", target).returncode == 0
