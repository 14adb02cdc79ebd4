"""Drivers and workers at a target: what they found there, and what they do."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pyarrow as pa

from arrowquant_dist.format.parquet.part import PartWriter
from arrowquant_dist.storage.base import Store
from arrowquant_dist.target.clear import clear
from arrowquant_dist.target.index import write_index
from arrowquant_dist.target.layout import Listing, part_path
from arrowquant_dist.target.manifest import Manifest
from arrowquant_dist.target.plan_file import RunIdentity
from arrowquant_dist.target.publish import Draft, Published, prepare, publish
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.target.shards import CommittedShards
from arrowquant_dist.target.target import State, Target
from tests.format.test_part import make_row
from tests.storage.places import Place

SIDECARS = {"config.json": b"{}"}
REPORT = {"report/report.json": b"[]", "report/layers.parquet": b"x"}


@dataclass
class Driver:
    """A driver's view of a target. run: the run that it found there or began."""

    target: Target
    run: RunIdentity

    @property
    def store(self) -> Store:
        return self.target.store

    @property
    def shards(self) -> CommittedShards:
        return CommittedShards(self.target, self.run.fingerprint, self.run.name)

    def receipts(self) -> dict[int, Receipt]:
        return self.shards.receipts(self.target.look(), {})

    def commit(self, receipt: Receipt) -> bool:
        return self.shards.commit(receipt)

    def work(self, shard: int, attempt: str) -> Receipt:
        """Does a shard as far as a worker does without committing: its part is written. Returns the receipt."""
        writer = PartWriter(self.store, part_path(shard, attempt), "none")
        row = make_row(f"layer-{shard}", 100)
        writer.add(row, source_nbytes=400, method="rtn", kept_reason=None, errors=None)
        info = writer.close()
        return Receipt(
            shard, attempt, info.path, info.nbytes, info.hash, info.records, {}, 1, "w", "n", 0.5, 3, 2, 1
        )

    def index(self) -> bytes:
        return write_index((r.part, r.shard, row) for r in self.receipts().values() for row in r.rows)

    def prepare(self, config: str = "") -> Draft:
        """A draft of everything that is committed. config: a text by which manifests can be told apart."""
        index = self.index()
        manifest = make_manifest([*self.receipts().values()], index, self.run.fingerprint, config)
        return prepare(self.target, self.run, manifest, index, SIDECARS, self.target.look())

    def publish(self, config: str = "") -> Published:
        return publish(self.target, self.prepare(config), REPORT)


def make_manifest(receipts: list[Receipt], index: bytes, fingerprint: str, config: str = "") -> Manifest:
    return Manifest.of(
        receipts,
        index=index,
        sidecars=SIDECARS,
        fingerprint=fingerprint,
        source={},
        config={"name": config},
        compression="none",
        aliases={},
    )


def plan(fingerprint: str = "xxh3_128:f") -> pa.Table:
    return pa.table({"layer_name": ["a", "b"]}).replace_schema_metadata(
        {"arrowquant.fingerprint": json.dumps(fingerprint)}
    )


def at(place: Place) -> Target:
    return Target.open(place.uri, place.storage)


def state(place: Place) -> State:
    return at(place).state(at(place).look())


def begin(place: Place, fingerprint: str = "xxh3_128:f") -> Driver:
    """A driver that begins at an empty target, or at one with an equal plan."""
    return start(at(place), plan(fingerprint))


def start(target: Target, plan_table: pa.Table) -> Driver:
    return Driver(target, target.start(plan_table, target.look()).identity)


def overwrite(place: Place, fingerprint: str) -> Driver:
    """A driver that begins with --overwrite."""
    target = at(place)
    return Driver(target, target.start(plan(fingerprint), cleared(target)).identity)


def cleared(target: Target) -> Listing:
    """Clears the target as --overwrite does, and returns what is left."""
    return clear(target, target.look())


def committed(place: Place, fingerprint: str = "xxh3_128:f") -> Driver:
    """A driver with two committed shards."""
    driver = begin(place, fingerprint)
    for shard in range(2):
        assert driver.commit(driver.work(shard, "a"))
    return driver


def finished(place: Place) -> Driver:
    driver = committed(place)
    assert driver.publish().is_ours
    return driver
