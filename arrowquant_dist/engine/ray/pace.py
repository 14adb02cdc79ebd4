"""Estimates how long shards take, and decides how long to wait for them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from statistics import median

_REMEMBERED = 200  # number of finished shards from which the rate is computed
_SHARD_NBYTES = 1 << 20  # overhead of a shard, as if it had so many more bytes: requests, footer, commit
_GONE_SECONDS = 10.0  # after which the run fails if its only node is gone
_SLOWEST = 4 << 20  # bytes per second, assumed before any shard has finished


@dataclass(frozen=True, slots=True)
class Patience:
    """Time limits in seconds, and numbers of attempts.

    attempts: maximum attempts per shard; if workers die, hang or cannot reach their storage as often, the run fails.
    deadline: time without a finished row block after which a worker counts as hung; None: estimated from other shards,
        at least DEADLINE.
    poll: interval between progress calls to each worker.
    backoff: pause before a failed shard is tried again, doubled each time.
    stall: time without a finished row block after which an idle worker begins the shard too.
    late: time beyond twice the expected duration after which a shard is begun a second time.
    loser: time for a worker that was told to stop, before it is killed.
    farewell: time for all workers to stop at the end of the run.
    placement: time after which the run fails if the cluster has no room for a single worker; nodes of an autoscaler
        take minutes to start.
    """

    attempts: int = 4
    deadline: float | None = None
    poll: float = 1.0
    backoff: float = 1.0
    stall: float = 10.0
    late: float = 3.0
    loser: float = 30.0
    farewell: float = 5.0
    placement: float = 900.0

    @property
    def on_one_node(self) -> Patience:
        """The same for a single node, which no other node replaces when it is gone."""
        return replace(self, placement=min(self.placement, _GONE_SECONDS))


DEADLINE = 300.0


@dataclass(slots=True)
class Pace:
    """Estimates durations from the shards that are finished."""

    _rates: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def add(self, nbytes: int, seconds: float) -> None:
        """Records that a shard of `nbytes` source bytes was finished."""
        self._rates.append((nbytes + _SHARD_NBYTES) / max(seconds, 1e-3))

    def expected(self, nbytes: int) -> float | None:
        """Expected seconds for a shard of `nbytes`, by the median rate of finished shards; None before the first."""
        return (nbytes + _SHARD_NBYTES) / median(self._rates) if self._rates else None

    def deadline(self, nbytes: int) -> float:
        """Seconds without a finished row block that no working worker needs.

        Ten times the expected duration of the whole shard: a tensor with one scale is read once before its first
        block is quantized.
        """
        return max(DEADLINE, 10 * (self.expected(nbytes) or (nbytes + _SHARD_NBYTES) / _SLOWEST))


def is_slow(elapsed: float, still: float, expected: float | None, patience: Patience) -> bool:
    """Whether a shard is worth a second attempt by an idle worker.

    elapsed: seconds since it was begun. still: seconds since its last finished row block. expected: seconds for the
    whole shard.
    """
    if expected is None:
        return False
    return elapsed > 2 * expected + patience.late or still > max(patience.stall, expected / 2)
