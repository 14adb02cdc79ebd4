"""Commits: a receipt is read back unchanged and is small, and commits of older releases are read correctly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.commit import commit_path, read_commit, write_commit
from arrowquant_dist.target.receipt import Receipt
from tests.target.old_commits import as_version_3
from tests.target.test_index_manifest import make_receipt

PLAN = "xxh3_128:f"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(str(tmp_path_factory.mktemp("commits")))


def receipt_in(store: Store, shard: int = 0) -> Receipt | None:
    found = read_commit(store, commit_path(shard), PLAN)
    assert found is not None
    return found.receipt


@settings(max_examples=40, deadline=None)
@given(
    st.none() | st.floats(0, 1e11).map(lambda seconds: round(seconds, 3)),
    st.none() | st.integers(0, 1 << 50),
    st.integers(0, 1 << 20),
)
def test_when_a_shard_was_begun_and_with_what_memory_comes_back_and_takes_a_hundred_bytes(
    store: Store, started_at: float | None, resident_nbytes: int | None, thread: int
) -> None:
    receipt = replace(make_receipt(), started_at=started_at, resident_nbytes=resident_nbytes, thread=thread)
    Path(store.url(commit_path(0))).unlink(missing_ok=True)
    assert write_commit(store, receipt, PLAN, lambda: True)
    assert receipt_in(store) == receipt
    content = store.read(commit_path(0))
    assert len(content) - len(as_version_3(content)) <= 100


def test_a_commit_of_version_3_is_read_and_one_of_another_version_is_stale(store: Store) -> None:
    receipt = replace(make_receipt(), shard=1)
    assert write_commit(store, receipt, PLAN, lambda: True)
    content = store.read(commit_path(1))
    store.write(commit_path(1), as_version_3(content))
    assert receipt_in(store, 1) == replace(receipt, started_at=None, resident_nbytes=None, thread=0)
    for version in (2, 5):
        store.write(commit_path(1), content.replace(b'"commit_version":4', b'"commit_version":%d' % version))
        assert receipt_in(store, 1) is None


@pytest.mark.parametrize("name", ["started_at", "resident_nbytes", "thread"])
def test_a_commit_with_values_of_other_types_is_stale(store: Store, name: str) -> None:
    changed: dict[str, Any] = {name: "soon"}
    receipt = replace(make_receipt(), shard=2, **changed)
    Path(store.url(commit_path(2))).unlink(missing_ok=True)
    assert write_commit(store, receipt, PLAN, lambda: True)
    assert receipt_in(store, 2) is None
