"""Tiny models gain nothing by a second thread of torch, and wait for it wherever other tests run beside them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from arrowquant_dist.models.threads import threads


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with threads(1):
        yield
