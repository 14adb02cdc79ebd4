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
    """fingerprint: of the plan; run: the id of its run, None where equal plans need not be told apart.

    Commits of others are not seen, whatever the target's plan is now.
    """

    target: Target
    fingerprint: str
    run: str | None = None

    def receipts(self, listing: Listing, known: Mapping[int, Receipt]) -> dict[int, Receipt]:
        """The committed shards, by shard.

        A commit that cannot be read, is of another plan, or whose part is not there in its size, is none: the
        shard is done again, and that attempt's commit counts. known: what an earlier call returned; a commit never
        changes, so those are not read again.
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
        """Of one shard: what `receipts` has for it, in two requests."""
        return read_counting(self.target.store, shard, self.fingerprint, self.run)

    def commit(self, receipt: Receipt) -> bool:
        """Publishes a finished shard, the first attempt wins. False: another has; this one's part is deleted.

        The receipt that counts then is `receipt(shard)`. StorageError: the outcome is unknown, and nothing is
        deleted. TargetConflict: the run was overwritten by another, and the part is deleted.
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
        """Whether the plan at the target, read anew, is this run's."""
        current = self.target.current()
        return current.fingerprint == self.fingerprint and self.run in (None, current.name)
