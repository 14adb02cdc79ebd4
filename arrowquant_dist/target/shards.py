"""The shards of one plan at a target: which are committed, and how a worker commits one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from arrowquant_dist.errors import TargetConflict
from arrowquant_dist.target.commit import (
    counting_receipts,
    place_of,
    read_commits,
    read_counting,
    write_commit,
)
from arrowquant_dist.target.layout import Listing
from arrowquant_dist.target.receipt import Receipt
from arrowquant_dist.target.target import Target


@dataclass(frozen=True, slots=True)
class CommittedShards:
    """The committed shards of one run. fingerprint: of its plan. run: the id of the run; None if runs with equal
    plans need not be told apart.

    Commits of other runs are ignored, whatever plan the target has by now.
    """

    target: Target
    fingerprint: str
    run: str | None = None

    def receipts(self, listing: Listing, known: Mapping[int, Receipt]) -> dict[int, Receipt]:
        """The receipts of the committed shards, by shard.

        A commit does not count if it cannot be read, belongs to another plan, or its part is not there with the right
        size: the shard is done again, and that attempt's commit counts. known: the result of an earlier call; since a
        commit never changes, those are not read again.
        """

        def has_part(receipt: Receipt) -> bool:
            return listing.holds(receipt.part, receipt.nbytes)

        counting = {shard: receipt for shard, receipt in known.items() if has_part(receipt)}
        unread = [path for path in listing.commits if place_of(path)[0] not in counting]
        counting |= counting_receipts(
            read_commits(self.target.store, unread, self.fingerprint, self.run), has_part
        )
        return dict(sorted(counting.items()))

    def receipt(self, shard: int) -> Receipt | None:
        """The receipt of one shard, as `receipts` has it, in two requests."""
        return read_counting(self.target.store, shard, self.fingerprint, self.run)

    def commit(self, receipt: Receipt) -> bool:
        """Commits a finished shard; the first attempt wins. False: another one has won, and this one's part is deleted.

        The receipt that counts then is `receipt(shard)`. Raises StorageError if the outcome is unknown; nothing is
        deleted then. Raises TargetConflict if the run was overwritten by another; the part is deleted.
        """
        store = self.target.store
        try:
            if write_commit(store, receipt, self.fingerprint, self._is_current, self.run):
                return True
        except TargetConflict:
            store.delete([receipt.part])
            raise
        store.delete([receipt.part])
        return False

    def _is_current(self) -> bool:
        """Whether the plan at the target, read again, is this run's."""
        current = self.target.current()
        return current.fingerprint == self.fingerprint and self.run in (None, current.name)
