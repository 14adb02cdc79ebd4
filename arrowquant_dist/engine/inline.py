"""Runs workers as threads of this process: kernels, hashing, compression and I/O release the GIL."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from arrowquant_dist.engine.log import figures_of, log_attempt
from arrowquant_dist.engine.run import (
    EngineFacts,
    OnEvent,
    compiles,
    finished,
    largest_first,
    raise_failures,
)
from arrowquant_dist.errors import RESUMES, Interrupted
from arrowquant_dist.machine import usable_cpus
from arrowquant_dist.worker.job import Context, Done, J, JobBlock, OnBlock, ShouldStop, Worker


class InlineEngine:
    """Runs workers as threads. workers: number of threads, by default as many as CPUs that this process may use."""

    name = "inline"

    def __init__(self, workers: int | None) -> None:
        self.workers = workers or usable_cpus()

    def workers_of_a_process(self, shards: int) -> int:
        return min(self.workers, max(shards, 1))

    def run(self, context: Context[J], shards: Sequence[J], on_event: OnEvent) -> EngineFacts:
        """See Engine.run. Ctrl-C stops each worker after its current row block, removes unfinished parts and raises
        Interrupted."""
        return self.run_steps(context, [shards], on_event, len(shards))

    def run_steps(
        self, context: Context[J], steps: Iterable[Sequence[J]], on_event: OnEvent, widest: int
    ) -> EngineFacts:
        """See Engine.run_steps."""
        started = time.perf_counter()
        stop = threading.Event()
        threads = threading.local()
        told: dict[int, Any] = {}

        def run_shard(shard: J) -> Done:
            if not hasattr(threads, "worker"):
                threads.worker = context.open_worker(None, on_compile)
            return _logged(threads.worker, shard, on_block, stop.is_set)

        def on_block(block: JobBlock) -> None:
            on_event(finished([block], self.workers))

        def on_compile(purpose: str) -> None:
            on_event(compiles(purpose, self.workers))

        self.workers = self.workers_of_a_process(widest)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="worker") as pool:
            coming = iter(steps)
            while True:
                try:
                    shards = next(coming, None)
                    running = {job.index: pool.submit(run_shard, job) for job in largest_first(shards or ())}
                    wait(running.values())
                except KeyboardInterrupt as error:
                    stop.set()
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise Interrupted(RESUMES) from error
                if shards is None:
                    break
                raise_failures(_failures(running), shards)
                told |= {index: future.result().notice for index, future in running.items()}
        seconds = time.perf_counter() - started
        return EngineFacts(
            nodes=(socket.gethostname(),),
            worker_seconds=self.workers * seconds,
            notices={index: notice for index, notice in told.items() if notice is not None},
        )


def _logged(worker: Worker[J], shard: J, on_block: OnBlock, should_stop: ShouldStop) -> Done:
    started = time.perf_counter()

    def log(outcome: str, **figures: Any) -> None:
        seconds = round(time.perf_counter() - started, 3)
        node = socket.gethostname()
        log_attempt(shard, 1, outcome, node, logging.DEBUG, worker_seconds=seconds, **figures)

    try:
        receipt = worker.run(shard, on_block, should_stop)
    except Exception as error:
        log("stopped" if isinstance(error, Interrupted) else "failed", error=error)
        raise
    log("done" if receipt.worker == worker.name else "beaten", **figures_of(receipt))
    return receipt


def _failures(running: dict[int, Future[Done]]) -> dict[int, Exception]:
    failures: dict[int, Exception] = {}
    for index, future in running.items():
        error = future.exception()
        if isinstance(error, Exception):
            failures[index] = error
        elif error is not None:  # SystemExit and the like
            raise error
    return failures
