"""Presets: the files of configs/ by their names, and which words name one."""

from __future__ import annotations

from pathlib import Path

import pytest

from arrowquant_dist import ArrowQuantizer, load_config, presets
from arrowquant_dist.config import config_place, preset_file, preset_names
from arrowquant_dist.errors import InvalidConfig
from tests.conftest import CHECKOUT

CONFIGS = CHECKOUT / "configs"
PRESETS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def test_the_presets_are_the_files_of_configs() -> None:
    assert list(preset_names()) == list(presets()) == PRESETS
    for name in PRESETS:
        assert preset_file(name).samefile(CONFIGS / f"{name}.yaml")
        assert load_config(name) == load_config(CONFIGS / f"{name}.yaml")


def test_a_word_is_the_preset_whatever_the_working_directory_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("int4", "int4.yaml", "mine"):
        Path(name).write_text("quant_type: int2\n")
    assert load_config("int4")[0].quant_type == "int4"
    for place in ("./int4", "int4.yaml", Path("int4"), Path("mine"), f"{tmp_path}/int4"):
        assert load_config(place)[0].quant_type == "int2"
    with pytest.raises(InvalidConfig, match=r"no preset 'mine'.*For a file of that name, write \./mine"):
        load_config("mine")


def test_a_preset_is_what_a_quantizer_takes_and_keys_win_over_it() -> None:
    quantizer = ArrowQuantizer(*load_config("int4-gptq", instead={"hessians": "out/statistics"}))
    assert (quantizer.config.method, quantizer.config.hessians) == ("gptq", "out/statistics")
    assert quantizer.run.compression == "zstd"


@pytest.mark.parametrize("place", ["a/b", "a.yaml", "./a", "s3://b/a", "memory://a", "-", "~a"])
def test_other_texts_are_places(place: str) -> None:
    assert config_place(place) == place


def test_an_unknown_name_lists_the_presets_and_the_nearest() -> None:
    with pytest.raises(InvalidConfig) as raised:
        load_config("int4_gptq")
    assert "did you mean 'int4-gptq'?" in raised.value.message
    assert ", ".join(PRESETS) in raised.value.message


def test_a_file_that_is_not_there_and_has_a_preset_s_name_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="the preset of that name is int4, without folder and suffix"):
        load_config(f"{tmp_path}/int4.yaml")


@pytest.mark.parametrize("name", PRESETS)
def test_each_says_what_it_is_for_in_a_sentence(name: str) -> None:
    assert presets()[name].endswith((".", ".`"))
    assert len(presets()[name]) < 300
