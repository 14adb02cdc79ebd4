"""load_tokenizer accepts only its own arguments, and says what to use instead of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arrowquant_dist import load_tokenizer
from arrowquant_dist.errors import InvalidConfig


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"trust_remote_code": True}, "load_tokenizer takes no trust_remote_code: code .* is not run"),
        ({"revision": "main"}, "load_tokenizer takes no revision: .* storage_options"),
        ({"padding_side": "left"}, "load_tokenizer takes no padding_side: set it on the tokenizer"),
        ({"no_such": 1}, "load_tokenizer takes no no_such: leave it out"),
        ({"subfolder": 5}, "subfolder"),
        ({"subfolder": "../other"}, "subfolder: must be a path within the dataset"),
        ({"verify": "no"}, "verify"),
        ({"storage_options": 5}, "storage_options"),
    ],
)
def test_arguments_that_it_does_not_have_are_refused_with_what_to_do(
    tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(InvalidConfig, match=match):
        load_tokenizer(tmp_path, **options)
