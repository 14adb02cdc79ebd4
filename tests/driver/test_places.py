"""Odd places work from beginning to end, or are refused before any work; nobody is told to run again for ever."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arrowquant_dist import QuantizationConfig, RunConfig
from arrowquant_dist.driver import plan_only, quantize
from arrowquant_dist.errors import InvalidCheckpoint, InvalidConfig, TargetConflict
from arrowquant_dist.verify import verify
from tests.datasets import weights_of
from tests.servers.fixtures import Bucket
from tests.sources import random_weights, save_checkpoint

CONFIG = QuantizationConfig()
RUN = RunConfig(workers=1, shard_bytes=64 << 10, engine="inline")
NAMES = [
    "a b",
    "ünï-模",
    "100%",
    "a%20b",
    "a*b",
    "[ab]",
    "a+b",
    "a&b=c",
    "a,b;c",
    "-a",
    "a'b\"c",
    "~a",
    "{a}$(b)",
]


@pytest.fixture
def source(tmp_path: Path) -> str:
    source = save_checkpoint(tmp_path / "source", random_weights(2, 64, 512, torch.float32))
    (Path(source) / "config.json").write_text('{"a": 1}')
    return source


@pytest.fixture
def quiet(source: str, tmp_path: Path) -> dict[Any, Any]:
    quantize(source, str(tmp_path / "quiet"), CONFIG, RUN)
    return weights_of(tmp_path / "quiet")


@pytest.mark.parametrize("folder", ["weights", "run", "report", "run/commits"])
def test_a_folder_of_the_target_may_be_a_link_to_another_disk(
    source: str, tmp_path: Path, quiet: dict[Any, Any], folder: str
) -> None:
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (target / folder).parent.mkdir(parents=True)
    (target / folder).symlink_to(elsewhere)
    quantize(source, str(target), CONFIG, RUN)
    assert any(elsewhere.iterdir())
    assert verify(str(target)).problems == ()
    assert quantize(source, str(target), CONFIG, RUN).already_finished
    quantize(source, str(target), CONFIG, RUN.replace(overwrite=True))
    assert (target / folder).is_symlink()
    assert weights_of(Path(shutil.copytree(target, tmp_path / "whole"))) == quiet


def test_the_target_may_be_a_link_and_have_any_spelling(
    source: str, tmp_path: Path, quiet: dict[Any, Any]
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for spelling in ("link/new", "link//new/", "./link/../link/new/."):
        outcome = quantize(source, f"{tmp_path}/{spelling}", CONFIG, RUN)
        assert outcome.already_finished == (spelling != "link/new")
    assert weights_of(tmp_path / "disk/new") == quiet


@pytest.mark.parametrize("name", ["weights", "run", "report", ""])
def test_a_link_to_nothing_is_refused_before_any_work(source: str, tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).symlink_to(tmp_path / "gone")
    for call in (plan_only, quantize):
        with pytest.raises(TargetConflict, match=r"is a link to .*gone, which does not exist"):
            call(source, str(target), CONFIG, RUN)
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("name", [*NAMES, "a?b", "a#b", "a:b", "a\\b"])
def test_odd_names_are_local_sources_and_targets(
    source: str, tmp_path: Path, quiet: dict[Any, Any], name: str
) -> None:
    moved = tmp_path / name / "model"
    shutil.copytree(source, moved)
    quantize(str(moved), str(tmp_path / name / "target"), CONFIG, RUN)
    assert verify(str(tmp_path / name / "target")).problems == ()
    assert weights_of(tmp_path / name / "target") == quiet


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_are_sources_and_targets_in_a_bucket_or_refused_at_once(
    source: str, tmp_path: Path, quiet: dict[Any, Any], bucket: Bucket, name: str
) -> None:
    run = RUN.replace(storage_options=bucket.storage_options)
    bucket.objects.upload_folder(Path(source), f"{bucket.uri}/{name}/model")
    target = f"{bucket.uri}/{name}/target/"
    quantize(f"{bucket.uri}/{name}/model/", target, CONFIG, run)
    stored = bucket.objects.download_folder(target.rstrip("/"), tmp_path / "stored")
    assert weights_of(stored) == quiet
    assert verify(str(stored)).problems == ()
    assert quantize(f"{bucket.uri}/{name}/model", target, CONFIG, run).already_finished


@pytest.mark.parametrize("place", ["/a//b", "//a/b", "//", "/a/./b", "/a/../b", "/.."])
@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "memory"])
def test_a_target_whose_url_has_empty_or_dotted_names_is_refused_before_any_work(
    source: str, scheme: str, place: str
) -> None:
    for call in (plan_only, quantize):
        with pytest.raises(InvalidConfig, match=r"has an empty name, `\.` or `\.\.` in it"):
            call(source, f"{scheme}://bucket{place}", CONFIG, RUN)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("call", [plan_only, quantize])
def test_a_dataset_that_lost_a_file_that_its_run_copied_is_no_source(
    source: str, tmp_path: Path, name: str, call: Callable[..., object]
) -> None:
    """The dataset made of it would lack the file too, with a manifest that says so."""
    Path(source, "tokenizer.json").write_text("{}")
    Path(source, "README.md").write_text("what people read")
    quantize(source, str(tmp_path / "first"), CONFIG, RUN)
    (tmp_path / "first" / name).unlink()
    (tmp_path / "first/README.md").unlink()
    with pytest.raises(InvalidCheckpoint, match=rf"first: {name}: listed in its manifest, but not there"):
        call(str(tmp_path / "first"), str(tmp_path / "second"), CONFIG, RUN)
    assert not (tmp_path / "second").exists()
    (tmp_path / "first" / name).write_bytes(Path(source, name).read_bytes())
    call(str(tmp_path / "first"), str(tmp_path / "second"), CONFIG, RUN)


def test_a_dataset_whose_copied_file_was_changed_is_no_source(source: str, tmp_path: Path) -> None:
    Path(source, "README.md").write_text("what people read")
    quantize(source, str(tmp_path / "first"), CONFIG, RUN)
    (tmp_path / "first/README.md").write_text("what people write")
    quantize(str(tmp_path / "first"), str(tmp_path / "second"), CONFIG, RUN)
    before = weights_of(tmp_path / "second")
    (tmp_path / "first/config.json").write_text('{"a": 2}')
    for run in (RUN, RUN.replace(overwrite=True)):
        for target in ("second", "third"):
            if (target, run) == ("second", RUN):
                continue  # finished: nothing is copied
            with pytest.raises(InvalidCheckpoint, match=r"config\.json: this is not the file that the manif"):
                quantize(str(tmp_path / "first"), str(tmp_path / target), CONFIG, run)
    assert weights_of(tmp_path / "second") == before
    assert not (tmp_path / "third").exists()
