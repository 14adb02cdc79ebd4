"""Runs torch on one thread: tiny models gain nothing from a second one, and wait for it if other tests are running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from arrowquant_dist.models.threads import threads


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with threads(1):
        yield
