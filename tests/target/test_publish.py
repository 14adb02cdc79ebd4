"""Whose dataset it is when several drivers publish, and what is known if an answer was lost."""

from __future__ import annotations

from typing import Any

import pytest

from arrowquant_dist.errors import StorageError, TargetConflict
from arrowquant_dist.storage.base import Store
from arrowquant_dist.target.publish import Published, prepare, publish
from tests.storage.places import Place
from tests.target.drivers import REPORT, SIDECARS, Driver, at, begin, committed, make_manifest, overwrite

INDEX = "index.parquet"


class Landing:
    """A store whose create of manifest.json lands. What is told: `error`, or that something was there already."""

    def __init__(self, store: Store, error: Exception | None) -> None:
        self._store, self._error = store, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def create(self, path: str, data: bytes) -> bool:
        created = self._store.create(path, data)
        if path != "manifest.json":
            return created
        if self._error is not None:
            raise self._error
        return False


@pytest.mark.parametrize("error", [StorageError("the answer got lost"), None], ids=["lost", "repeated"])
def test_a_manifest_that_landed_is_ours_whatever_was_answered(place: Place, error: Exception | None) -> None:
    """A request that a client repeats finds its own object there. The config's tuples come back as lists."""
    driver = committed(place)
    driver.target.store = Landing(driver.store, error)  # type: ignore[assignment]
    receipts = [*driver.receipts().values()]
    index = driver.index()
    manifest = make_manifest(receipts, index, driver.run.fingerprint)
    manifest.config["overrides"] = ("a", "b")
    draft = prepare(driver.target, driver.run, manifest, index, SIDECARS, driver.target.look())
    assert publish(driver.target, draft, REPORT).is_ours


def test_a_repeated_manifest_of_a_run_that_was_overwritten_is_taken_back(place: Place) -> None:
    driver = committed(place)
    driver.target.store = Landing(driver.store, None)  # type: ignore[assignment]
    draft = driver.prepare()
    overwrite(place, driver.run.fingerprint)
    with pytest.raises(TargetConflict, match="overwritten"):
        publish(driver.target, draft, REPORT)
    assert "manifest.json" not in place.paths()


def test_a_driver_that_finds_a_dataset_writes_nothing_and_its_report_neither(place: Place) -> None:
    first, second = committed(place), begin(place)
    manifest = first.publish("first").manifest
    before = {path: place.get(path) for path in place.paths()}
    draft = second.prepare("second")
    assert publish(second.target, draft, {"report/report.json": b"second"}) == Published(
        manifest, is_ours=False
    )
    assert {path: place.get(path) for path in place.paths()} == before


def test_the_report_is_written_when_all_else_is_there_and_before_the_manifest(place: Place) -> None:
    driver = committed(place)
    draft = driver.prepare()
    assert {INDEX, *SIDECARS} <= {*place.paths()}
    assert not {"manifest.json", *REPORT} & {*place.paths()}
    publish(driver.target, draft, REPORT)
    assert {"manifest.json", *REPORT} <= {*place.paths()}


def test_another_plans_dataset_is_not_taken_for_this_ones(place: Place) -> None:
    old = begin(place, "xxh3_128:old")
    new = overwrite(place, "xxh3_128:new")
    new.commit(new.work(0, "a"))
    new.publish()
    with pytest.raises(TargetConflict, match="another plan's dataset"):
        old.prepare()


def test_two_runs_of_one_plan_are_told_apart(place: Place) -> None:
    first = begin(place)
    again = overwrite(place, first.run.fingerprint)
    assert first.run.fingerprint == again.run.fingerprint
    assert first.run != again.run == at(place).current()


def test_a_place_remembers_nothing(place: Place) -> None:
    driver: Driver = committed(place)
    before = dict(vars(driver.target))
    driver.target.planned()
    driver.publish()
    driver.target.state(driver.target.look())
    assert vars(driver.target) == before == {"store": driver.store}
