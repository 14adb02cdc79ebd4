"""One validation of a tiny model, which the tests of this folder examine."""

from __future__ import annotations

from pathlib import Path

import pytest

from arrowquant_dist import RunConfig, Validation
from arrowquant_dist.validation import resident, validate
from tests.evaluation.models import TEXTS, save_bert

RUN = RunConfig(engine="inline", workers=1)
CONFIGS = ["int8", "int2"]


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert") / "source")


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imitates a system that does not report resident memory, so that no process has to be started."""
    monkeypatch.setattr(resident, "can_measure", lambda: False)


@pytest.fixture(scope="session")
def found(bert: Path) -> Validation:
    """A validation with int8 and int2 and 25 texts, at `out` next to the source."""
    return validate(bert, bert.parent / "out", CONFIGS, texts=TEXTS, run=RUN)


@pytest.fixture(scope="session")
def out(bert: Path, found: Validation) -> Path:
    return bert.parent / "out"
