"""Ray metrics: each node's agent offers them to Prometheus, as `ray_arrowquant_…` (counters end in `_total`).

Workers count what they did, the driver what became of it. A process passes its figures to the agent every few seconds
(Ray's metrics_report_interval_ms), and when it ends they disappear from the endpoint: for sums over a run, ask
Prometheus for `increase`; the report has the totals. No tag has a number of values that grows with the model.
"""

from __future__ import annotations

import threading

from ray.util.metrics import Counter, Gauge

from arrowquant_dist.worker.job import Done, JobBlock


class WorkerMetrics:
    """Metrics of one actor. Counts are passed on by `flush`, since that may cost more than a small row block."""

    def __init__(self) -> None:
        self._row_blocks = Counter("arrowquant_row_blocks", "Row blocks quantized, repeats included")
        self._layers = Counter("arrowquant_layers", "Layers whose first row block was quantized")
        self._read = Counter("arrowquant_read_bytes", "Source bytes that committed shards took to read")
        self._written = Counter("arrowquant_written_bytes", "Bytes written for committed parts")
        self._retries = Counter(
            "arrowquant_request_retries", "Requests to the object store that were repeated"
        )
        self._phases = Counter("arrowquant_phase_seconds", "Seconds of committed shards", ("phase",))
        self._lock = threading.Lock()
        self._new_blocks = self._new_layers = 0

    def add_block(self, block: JobBlock) -> None:
        with self._lock:
            self._new_blocks += 1
            self._new_layers += block.is_first

    def add_receipt(self, receipt: Done) -> None:
        _add(self._read, receipt.read_nbytes)
        _add(self._written, receipt.written_nbytes)
        _add(self._retries, receipt.retries)
        for phase, seconds in receipt.seconds.items():
            _add(self._phases, seconds, phase=phase)

    def flush(self) -> None:
        with self._lock:
            blocks, layers = self._new_blocks, self._new_layers
            self._new_blocks = self._new_layers = 0
        _add(self._row_blocks, blocks)
        _add(self._layers, layers)


class DriverMetrics:
    """Metrics of the run."""

    def __init__(self) -> None:
        self._retries = Counter(
            "arrowquant_shard_retries", "Shards begun again: worker lost, hung, out of reach"
        )
        self._stolen = Counter(
            "arrowquant_shards_stolen", "Shards begun twice at the end, since their worker was slow"
        )
        self._shards = Counter("arrowquant_shards", "Shards committed")
        self._alive = Gauge("arrowquant_actors_alive", "Actors that answered")
        self._open = Gauge("arrowquant_shards_open", "Shards that are not committed yet")

    def retried(self) -> None:
        self._retries.inc()

    def stolen(self) -> None:
        self._stolen.inc()

    def committed(self) -> None:
        self._shards.inc()

    def show(self, alive: int, shards_open: int) -> None:
        self._alive.set(alive)
        self._open.set(shards_open)


def _add(counter: Counter, value: float, **tags: str) -> None:
    if value > 0:  # Ray refuses 0
        counter.inc(value, tags or None)
