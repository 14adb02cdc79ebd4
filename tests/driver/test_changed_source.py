"""A source that changes before, while or after it is read is named, nothing of that shard is committed, and the exit
code is 2."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.checkpoint.quantized.find import find_quantized
from arrowquant_dist.driver import Progress, plan_only, quantize
from arrowquant_dist.errors import ArrowQuantError, SourceChanged, TargetConflict
from arrowquant_dist.plan import make_plan
from arrowquant_dist.verify import verify
from tests.datasets import weights_of
from tests.servers.fixtures import Bucket
from tests.sources import random_weights, save_checkpoint

pytestmark = pytest.mark.usefixtures("ticks")
CONFIG = QuantizationConfig()
RUN = RunConfig(workers=1, block_bytes=64 << 10, shard_bytes=128 << 10, engine="inline")
WEIGHTS = random_weights(4, 256, 256, torch.float32)
OTHERS = {name: -weights for name, weights in WEIGHTS.items()}
Weights = dict[tuple[str, int], tuple[bytes, bytes, bytes]]
Change = Callable[[Path], None]


def overwritten(file: Path) -> None:
    """In place: the same inode, size and, as far as a program can say so, times."""
    stat = file.stat()
    save_file(OTHERS, file.with_name("other"))
    with file.open("r+b") as out:
        out.write(file.with_name("other").read_bytes())
    file.with_name("other").unlink()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def swapped(file: Path) -> None:
    """By another file of equal size and times."""
    stat = file.stat()
    save_file(OTHERS, file.with_name("other"))
    os.utime(file.with_name("other"), ns=(stat.st_atime_ns, stat.st_mtime_ns))
    file.with_name("other").replace(file)


def one_bit_flipped(file: Path) -> None:
    stat = file.stat()
    with file.open("r+b") as out:
        out.seek(-1, os.SEEK_END)
        byte = out.read(1)[0]
        out.seek(-1, os.SEEK_END)
        out.write(bytes([byte ^ 1]))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def touched(file: Path) -> None:
    os.utime(file)


CHANGES = [overwritten, swapped, one_bit_flipped, touched]


@pytest.fixture
def source(tmp_path: Path) -> str:
    source = save_checkpoint(tmp_path / "source", WEIGHTS)
    (Path(source) / "config.json").write_text('{"a": 1}')
    return source


@pytest.fixture
def quiet(source: str, tmp_path: Path) -> Weights:
    quantize(source, str(tmp_path / "quiet"), CONFIG, RUN)
    return weights_of(tmp_path / "quiet")


class After:
    """An on_progress that does something once so many bytes are done."""

    def __init__(self, nbytes: int, action: Callable[[], None]) -> None:
        self._nbytes, self._action = nbytes, action
        self.is_done = False

    def __call__(self, progress: Progress) -> None:
        if progress.done_nbytes >= self._nbytes and not self.is_done:
            self.is_done = True
            self._action()


# One change at each moment, and each change at the first and last of them; the others are slow.
@pytest.mark.parametrize(
    ("change", "blocks"),
    [
        pytest.param(
            change,
            blocks,
            marks=[] if change is overwritten or blocks in (1, 2, 15, 16) else [pytest.mark.slow],
        )
        for blocks in range(1, 17)
        for change in CHANGES
    ],
)
def test_whenever_it_changes_while_it_is_read_no_later_shard_is_committed(
    source: str, tmp_path: Path, change: Change, blocks: int
) -> None:
    """Two row blocks a shard: what was committed before is of the planned source, and only that."""
    target, file = tmp_path / "out", Path(source) / "model.safetensors"
    planned = plan_only(source, str(target), CONFIG, RUN)
    after = After(blocks * (64 << 10), lambda: change(file))
    with pytest.raises(
        SourceChanged, match=r"model\.safetensors: the file has changed since the plan was made \("
    ) as told:
        quantize(source, str(target), CONFIG, RUN, after)
    assert after.is_done
    assert told.value.exit_code == 2
    assert not (target / "manifest.json").exists()
    committed = len(list((target / "run/commits").glob("*.json")))
    assert committed < len(planned.shards)
    assert len(list((target / "weights").rglob("*.parquet"))) == committed


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_that_was_killed_is_not_resumed_with_another_source(
    source: str, tmp_path: Path, quiet: Weights, change: Change
) -> None:
    target, file = str(tmp_path / "out"), Path(source) / "model.safetensors"
    kept = tmp_path / "kept"
    os.link(file, kept)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, target, CONFIG, RUN, After(256 << 10, interrupt))
    before = sorted((tmp_path / "out/weights").rglob("*.parquet"))
    assert before
    change(file)
    with pytest.raises(TargetConflict, match=r"source file changed: .*model\.safetensors \(.*ctime") as told:
        quantize(source, target, CONFIG, RUN)
    assert told.value.exit_code == 2
    assert sorted((tmp_path / "out/weights").rglob("*.parquet")) == before
    quantize(source, target, CONFIG, RUN.replace(overwrite=True))
    assert verify(target).problems == ()
    assert (weights_of(tmp_path / "out") == quiet) == (change is touched)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_untouched_source_is_resumed_and_finished(source: str, tmp_path: Path, quiet: Weights) -> None:
    target = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        quantize(source, target, CONFIG, RUN, After(256 << 10, interrupt))
    assert not quantize(source, target, CONFIG, RUN).already_finished
    assert weights_of(tmp_path / "out") == quiet
    assert quantize(source, target, CONFIG, RUN).already_finished


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_between_its_listing_and_its_headers_is_refused(
    source: str, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    file = Path(source) / "model.safetensors"

    def changing(*given: object) -> object:
        change(file)
        return find_quantized(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("arrowquant_dist.checkpoint.open.find_quantized", changing)
    with pytest.raises(SourceChanged, match=r"model\.safetensors"):
        open_checkpoint(source)


def test_a_sidecar_that_changes_while_the_run_begins_or_between_two_runs_is_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, sidecar = str(tmp_path / "out"), Path(source) / "config.json"
    with pytest.raises(KeyboardInterrupt):
        quantize(source, target, CONFIG, RUN, After(256 << 10, interrupt))
    sidecar.write_text('{"a": 2}')
    with pytest.raises(TargetConflict, match=r"source file changed: .*config\.json \(mtime, ctime\)"):
        quantize(source, target, CONFIG, RUN)

    def changing(*given: object) -> object:
        sidecar.write_text('{"a": 3}')
        return made(*given)  # type: ignore[arg-type]

    made = make_plan
    monkeypatch.setattr("arrowquant_dist.driver.run.make_plan", changing)
    with pytest.raises(SourceChanged, match=r"config\.json"):
        quantize(source, str(tmp_path / "other"), CONFIG, RUN)


def test_an_object_that_is_replaced_while_it_is_read_is_noticed(bucket: Bucket, tmp_path: Path) -> None:
    """Every answer of S3 says which version it is of."""
    source = Path(save_checkpoint(tmp_path / "source", WEIGHTS))
    bucket.objects.upload_folder(source, f"{bucket.uri}/m")
    save_checkpoint(source, OTHERS)
    other = (source / "model.safetensors").read_bytes()
    run = RUN.replace(storage_options=bucket.storage_options)

    def replaced() -> None:
        bucket.objects.put(f"{bucket.uri}/m/model.safetensors", other)

    target = str(tmp_path / "out")
    with pytest.raises(
        SourceChanged, match=r"model\.safetensors, .*: the file has changed .* \(ETag or version"
    ):
        quantize(f"{bucket.uri}/m", target, CONFIG, run, After(256 << 10, replaced))
    assert list((tmp_path / "out/run/commits").glob("*.json"))
    with pytest.raises(
        ArrowQuantError, match=r"source file changed: .*model\.safetensors \(ETag or version\)"
    ):
        quantize(f"{bucket.uri}/m", target, CONFIG, run)
