"""`model_loader_extra_config` is checked, and says where the dataset is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.plugins.vllm.settings import LoadSettings


def test_without_a_target_the_model_s_own_folder_is_the_dataset(tmp_path: Path) -> None:
    assert LoadSettings.of({}, str(tmp_path)) == LoadSettings(str(tmp_path), 2 << 30)


def test_a_folder_names_its_target_and_the_user_another_one(tmp_path: Path) -> None:
    (tmp_path / "arrowquant.json").write_text('{"target": "s3://bucket/model"}')
    assert LoadSettings.of({}, str(tmp_path)).target == "s3://bucket/model"
    assert LoadSettings.of({"target": "s3://other/model"}, str(tmp_path)).target == "s3://other/model"


def test_what_is_said_of_memory_and_storage_is_taken() -> None:
    values = {"target": "s3://b/m", "memory_budget": "512MiB", "storage_options": {"key": "k"}}
    settings = LoadSettings.of(values, "")
    assert (settings.memory_nbytes, settings.storage_options) == (512 << 20, {"key": "k"})


def test_credentials_are_not_shown() -> None:
    settings = LoadSettings.of({"target": "s3://b/m", "storage_options": {"secret": "hidden-one"}}, "")
    assert "hidden-one" not in repr(settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tagret": "s3://b/m"}, "tagret"),
        ({"target": 3}, "target: must be a string or a path"),
        ({"memory_budget": "much"}, "memory_budget"),
        ({"storage_options": "key"}, "storage_options"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        LoadSettings.of(values, "model")


@pytest.mark.parametrize("content", ["{", "[]", '{"target": 3}', "{}"])
def test_a_folder_whose_target_cannot_be_read_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "arrowquant.json").write_text(content)
    with pytest.raises(InvalidConfig, match=r"arrowquant\.json") as caught:
        LoadSettings.of({}, str(tmp_path))
    assert "name the target in model_loader_extra_config" in str(caught.value)


def test_where_there_is_no_vllm_the_entry_point_imports_nothing_and_says_so() -> None:
    code = """
import logging, sys
logging.basicConfig()
sys.modules["vllm"] = None  # as if it were not installed, wherever this runs
from arrowquant_dist.plugins.vllm import register
print(*sorted(name for name in sys.modules if name.startswith(("torch", "numpy", "arrowquant_dist."))))
register()
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["arrowquant_dist.plugins", "arrowquant_dist.plugins.vllm"]
    assert "load_format='arrowquant' is not available" in done.stderr
