"""Every measured or assumed number of the simulation, and where it is from. `measure.py rates` measures anew."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rates:
    """Of the program. The defaults: 2 shared vCPUs, int8 per channel from bfloat16, zstd, by measure.py while
    nothing else ran there.

    params_per_second: of one worker on one CPU, file to Parquet part, reading from the page cache.
    shard_seconds: what a shard costs a worker besides its weights. read_cpu, write_cpu: seconds of the worker's CPU a
    byte, for the S3 client alone. dispatch_seconds, dispatch_seconds_per_worker: of the driver's CPU a shard.
    actor_seconds: from the engine's start until its actors are at work.
    planning_seconds: a layer, make_plan and the plan at the target. reducing_seconds: a row block, receipts to report.
    """

    params_per_second: float
    shard_seconds: float
    read_cpu: float
    write_cpu: float
    dispatch_seconds: float
    dispatch_seconds_per_worker: float
    actor_seconds: float
    planning_seconds: float
    reducing_seconds: float


MEASURED = Rates(
    params_per_second=570e6,
    shard_seconds=0.0033,
    read_cpu=0.61e-9,
    write_cpu=1.5e-9,
    dispatch_seconds=0.53e-3,
    dispatch_seconds_per_worker=15e-6,
    actor_seconds=3.0,
    planning_seconds=8.8e-6,
    reducing_seconds=41e-6,
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Assumptions, not measured here; each can be given on the command line. Defaults: c6in.4xlarge and Amazon S3.

    latency: seconds to the first byte of a request (S3's guide says 0.1 to 0.2). stream: bytes a second of one request
    (its guide: 85 to 90 MB/s). network: bytes a second of a node, each way: c6in.4xlarge has 25 Gbit/s for good and 50
    in bursts (c7i.4xlarge: 6.25 and 12.5); 0: files on a disk that costs no time. workers_per_node: its vCPUs.
    requests: in flight a worker (transfer.requests).
    gets, puts: requests a second that S3 takes for one prefix at least (its guide: 5,500 and 3,500).
    node_seconds: until a node asked for has Ray running: starting the machine, pulling the image, installing.
    preemptions: of a node, an hour. jitter: spread (sigma) of a shard's time around what is expected.
    """

    latency: float = 0.15
    stream: float = 85e6
    network: float = 3.1e9
    workers_per_node: int = 16
    requests: int = 8
    gets: float = 5500.0
    puts: float = 3500.0
    node_seconds: float = 180.0
    preemptions: float = 0.05
    jitter: float = 0.1
