from __future__ import annotations

import pytest

from arrowquant_dist.config import RunConfig
from arrowquant_dist.engine import choose_engine


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("run", "environment", "engine"),
    [
        (RunConfig(), None, "inline"),
        (RunConfig(), "10.0.0.1:6379", "ray"),
        (RunConfig(address="auto"), None, "ray"),
        (RunConfig(engine="inline"), "10.0.0.1:6379", "inline"),
        (RunConfig(engine="ray"), None, "ray"),
    ],
)
def test_auto_takes_ray_where_an_address_is_known(
    run: RunConfig, environment: str | None, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert choose_engine(run, 1 << 30).name == engine


def test_inline_takes_as_many_threads_as_are_asked_for() -> None:
    assert choose_engine(RunConfig(engine="inline", workers=5), 0).workers == 5
