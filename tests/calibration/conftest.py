"""Runs torch on one thread: for models this small, threads waiting for each other cost more than the work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from arrowquant_dist.models.threads import threads


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    with threads(1):
        yield
