"""Every public function takes a place as a text or a path object, and says so if it gets anything else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.config import load_config
from arrowquant_dist.driver import plan_only
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.location import location
from arrowquant_dist.report.contents import read_contents
from arrowquant_dist.report.render import load_report
from arrowquant_dist.verify import verify

CONFIG, RUN = QuantizationConfig(), RunConfig(engine="inline", workers=1)


class Place:
    """A path object of someone else's."""

    def __init__(self, path: str | bytes) -> None:
        self._path = path

    def __fspath__(self) -> str | bytes:
        return self._path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a.weight": torch.randn(8, 16)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("made", [Path, str, lambda path: Place(str(path))], ids=["Path", "str", "PathLike"])
def test_a_place_may_be_a_text_or_a_path_object(
    source: Path, tmp_path: Path, made: Callable[[Path], Any]
) -> None:
    target = tmp_path / "target"
    assert plan_only(made(source), made(target), CONFIG, RUN).shards
    assert ArrowQuantizer(CONFIG, RUN).quantize(made(source), made(target)).totals.layers == 1
    assert verify(made(target)).is_sound
    assert load_report(made(target)).totals.layers == 1
    assert read_contents(made(target)).params == 128
    assert WeightLoader(made(target))["a.weight"].shape == (8, 16)
    assert [layer.name for layer in open_checkpoint(made(source)).layers] == ["a.weight"]
    (tmp_path / "c.yaml").write_text("quant_type: int4\n")
    assert load_config(made(tmp_path / "c.yaml"))[0].quant_type == "int4"
    assert QuantizationConfig(method=None, hessians=made(source)).to_dict()["hessians"] == str(source)


@pytest.mark.parametrize("given", [123, None, b"x", ["x"], Place(b"x"), "", "a\0b", 1.5, object])
@pytest.mark.parametrize(
    "use",
    [
        lambda place: ArrowQuantizer(CONFIG, RUN).quantize(place, "never"),
        lambda place: ArrowQuantizer(CONFIG, RUN).quantize("never", place),
        lambda place: plan_only("never", place, CONFIG, RUN),
        WeightLoader,
        verify,
        load_report,
        read_contents,
        open_checkpoint,
        load_config,
    ],
)
def test_what_is_no_place_is_one_error(use: Callable[[Any], Any], given: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"(uri|source|target|config file): "):
        use(given)


@pytest.mark.parametrize("url", ["s3://bucket/model", "memory://x/y", "hf://org/model"])
def test_a_url_in_a_path_object_is_refused_since_it_lost_a_slash(url: str) -> None:
    with pytest.raises(InvalidConfig, match="pass the URL as a string"):
        location(Path(url), "uri")
    assert location(url, "uri") == url


def test_a_folder_named_like_a_scheme_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s3:").mkdir()
    assert location(Path("s3:/x"), "uri") == "s3:/x"
    assert location(PurePosixPath("plain"), "uri") == "plain"
    assert isinstance(location(os.fspath(tmp_path), "uri"), str)
