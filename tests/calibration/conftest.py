"""torch on one thread: threads that wait for each other cost more than such small models do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from arrowquant_dist.models.threads import threads


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    with threads(1):
        yield
