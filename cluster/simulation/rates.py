"""Every measured or assumed number of the simulation, and where it is from. `measure.py rates` measures them again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of the program. Those in MEASURED are medians of four measurements by measure.py, on 2 shared vCPUs of
    Sapphire Rapids while nothing else ran there, for int8 per channel from bfloat16 with zstd.

    params_per_second: weights that one worker on one CPU quantizes per second, from a file in the page cache to a
    Parquet part. shard_seconds: seconds of a worker per shard, in addition to those for its weights. read_cpu,
    write_cpu: CPU seconds of a worker per byte, for the S3 client alone. dispatch_seconds, dispatch_seconds_per_worker:
    CPU seconds of the driver per shard, and how much they grow with each worker. actor_seconds: seconds from the
    engine's start until its actors work. planning_seconds: seconds per layer for make_plan and for writing the plan to
    the target. reducing_seconds: seconds per row block, from receipts to report.
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
    params_per_second=400e6,
    shard_seconds=0.0061,
    read_cpu=0.56e-9,
    write_cpu=2.7e-9,
    dispatch_seconds=1.04e-3,
    dispatch_seconds_per_worker=9e-6,  # the largest of the measurements; most found none
    actor_seconds=2.8,
    planning_seconds=28e-6,
    reducing_seconds=142e-6,
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Assumptions that are not measured here. Each can be given on the command line; the defaults are a c6in.4xlarge
    and Amazon S3.

    latency: seconds until the first byte of a request (S3's guide says 0.1 to 0.2). stream: bytes per second of one
    request (its guide: 85 to 90 MB/s). network: bytes per second of a node in each direction; a c6in.4xlarge has 25
    Gbit/s permanently and 50 in bursts (c7i.4xlarge: 6.25 and 12.5). 0 stands for files on a disk that costs no time.
    workers_per_node: vCPUs of a node. requests: requests in flight per worker (transfer.requests).
    gets, puts: requests per second that S3 accepts at least for one prefix (its guide: 5,500 and 3,500).
    node_seconds: seconds until a requested node has Ray running: starting the machine, pulling the image, installing.
    preemptions: preemptions per node and hour. jitter: spread (sigma) of a shard's time around the expected one.
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
