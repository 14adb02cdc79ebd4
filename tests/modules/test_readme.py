"""What the README says of plain torch runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from arrowquant_dist.modules import QuantEmbedding, QuantLinear
from tests.conftest import CHECKOUT
from tests.format.encoder import write_v2
from tests.modules.test_load import Model, rows_of

README = (CHECKOUT / "README.md").read_text()


def test_plain_torch_keeps_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = README.split("\n## Serve it\n", 1)[1].split("**Plain torch.**", 1)[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    write_v2(tmp_path / "out" / "model-int4" / "w.parquet", rows_of("int4"))
    monkeypatch.chdir(tmp_path)
    names = {"Model": Model}
    exec(code[1], names)  # noqa: S102
    model = names["model"]
    assert isinstance(model, Model)
    assert isinstance(model.table, QuantEmbedding)
    assert isinstance(model.head, QuantLinear)
    assert model(torch.tensor([[1, 2]])).isfinite().all()
