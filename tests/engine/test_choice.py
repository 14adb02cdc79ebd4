from __future__ import annotations

import pytest

from arrowquant_dist.config import RunConfig
from arrowquant_dist.engine import choose_engine
from arrowquant_dist.errors import InvalidConfig


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


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://10.0.0.1:8265"])
def test_an_address_of_another_kind_is_refused_with_what_to_do(address: str) -> None:
    from arrowquant_dist.engine.ray.cluster import connect

    with pytest.raises(InvalidConfig, match=r"host:6379.*ray job submit"):
        connect(address, None)


def test_inline_takes_as_many_threads_as_are_asked_for() -> None:
    assert choose_engine(RunConfig(engine="inline", workers=5), 0).workers == 5
