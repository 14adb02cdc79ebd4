"""vLLM arguments that mean nothing for a dataset are refused; tested without vLLM, with objects that have its
fields."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.plugins.vllm.arguments import check_draft, check_load_config, check_model_config


def model_config(model: object, tokenizer: object = None, **fields: Any) -> Any:
    none = {
        "revision": None,
        "code_revision": None,
        "tokenizer_revision": None,
        "hf_config": SimpleNamespace(),
    }
    tokenizer = model if tokenizer is None else tokenizer
    return SimpleNamespace(**{**none, **fields, "model": str(model), "tokenizer": str(tokenizer)})


@pytest.mark.parametrize("name", ["revision", "code_revision", "tokenizer_revision"])
def test_a_version_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidConfig, match=f"^{tmp_path}: {name}='v2' names a version on the Hub") as raised:
        check_model_config(model_config(tmp_path, **{name: "v2"}))
    assert raised.value.exit_code == 2


def test_a_version_of_a_repository_is_vllm_s_to_honour(tmp_path: Path) -> None:
    check_model_config(model_config("owner/name", revision="v2", tokenizer_revision="v2", code_revision="v2"))
    check_model_config(model_config(tmp_path, tokenizer="owner/name", tokenizer_revision="v2"))


def test_a_tokenizer_in_a_folder_has_no_version_beside_a_model_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="tokenizer_revision='v2'"):
        check_model_config(
            model_config("owner/name", tokenizer=tmp_path, revision="v1", tokenizer_revision="v2")
        )


def test_code_that_a_folder_s_config_has_in_a_repository_has_a_version(tmp_path: Path) -> None:
    config = SimpleNamespace(auto_map={"AutoConfig": "owner/name--configuration.Config"})
    check_model_config(model_config(tmp_path, code_revision="v2", hf_config=config))
    config.auto_map = {"AutoConfig": "configuration.Config"}
    with pytest.raises(InvalidConfig, match="code_revision"):
        check_model_config(model_config(tmp_path, code_revision="v2", hf_config=config))


def test_a_folder_without_versions_is_taken(tmp_path: Path) -> None:
    check_model_config(model_config(tmp_path))


@pytest.mark.parametrize("patterns", [["*.q_proj.*"], "layers.3*", ["original/**/*", "*.bin"]])
def test_files_that_are_to_be_left_out_are_refused(patterns: list[str] | str) -> None:
    with pytest.raises(InvalidConfig, match=r"ignore_patterns .* leave it out"):
        check_load_config(SimpleNamespace(ignore_patterns=patterns))


@pytest.mark.parametrize("patterns", [["original/**/*"], [], "original/**/*"])
def test_what_vllm_itself_leaves_out_is_no_refusal(patterns: list[str] | str) -> None:
    check_load_config(SimpleNamespace(ignore_patterns=patterns))


def test_a_draft_model_is_not_read_from_the_served_model_s_target(tmp_path: Path) -> None:
    served, draft = model_config(tmp_path / "a"), model_config(tmp_path / "b")
    with pytest.raises(
        InvalidConfig, match=r"b: .*target of .*a, but this is the draft model.*draft_load_config"
    ):
        check_draft(draft, served, names_target=True)
    check_draft(draft, served, names_target=False)
    check_draft(served, served, names_target=True)
    check_draft(model_config(tmp_path / "a"), served, names_target=True)
