"""How long things take, and how long to wait for them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from statistics import median

_REMEMBERED = 200  # finished shards that the rate is taken from
_SHARD_NBYTES = 1 << 20  # what a shard costs besides its bytes: requests, footer, commit
_GONE_SECONDS = 10.0  # after which a single node that is gone fails the run
_SLOWEST = 4 << 20  # bytes a second that are taken for granted before anything was seen


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds, and how often.

    attempts: of a shard, before workers that die, hang or cannot reach their storage fail the run. deadline: without a
    finished row block, after which a worker counts as hung; None: from what other shards took, DEADLINE at least.
    poll: between questions to each worker. backoff: before a shard that failed is tried again, doubled each time.
    stall: without a finished row block, after which an idle worker begins the shard, too; late: that a shard may take
    beyond twice the expected time before it is begun a second time. loser: for a worker that was told to stop, until
    it is killed. farewell: for all of them at the end of the run. placement: until a cluster that has no room for a
    single worker fails the run: nodes of an autoscaler take minutes to come.
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
        """The same where no node comes to take the place of one that is gone."""
        return replace(self, placement=min(self.placement, _GONE_SECONDS))


DEADLINE = 300.0


@dataclass(slots=True)
class Pace:
    """What shards took so far, and what that says of others."""

    _rates: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def add(self, nbytes: int, seconds: float) -> None:
        """A shard of `nbytes` source bytes was finished."""
        self._rates.append((nbytes + _SHARD_NBYTES) / max(seconds, 1e-3))

    def expected(self, nbytes: int) -> float | None:
        """Seconds for a shard of `nbytes`, by the median of those finished; None before the first."""
        return (nbytes + _SHARD_NBYTES) / median(self._rates) if self._rates else None

    def deadline(self, nbytes: int) -> float:
        """Seconds without a finished row block that no worker at work needs.

        Ten times the whole shard: a tensor with one scale is read once before its first block is quantized.
        """
        return max(DEADLINE, 10 * (self.expected(nbytes) or (nbytes + _SHARD_NBYTES) / _SLOWEST))


def is_slow(elapsed: float, still: float, expected: float | None, patience: Patience) -> bool:
    """Whether a shard is worth a second attempt on a worker that has nothing else to do.

    elapsed: seconds since it was begun; still: since its last row block; expected: for the whole shard.
    """
    if expected is None:
        return False
    return elapsed > 2 * expected + patience.late or still > max(patience.stall, expected / 2)
