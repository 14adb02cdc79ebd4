"""What a plan demands of workers and storage, shard by shard, from the program's own plan and batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from simulation.shapes import Tensors, checkpoint_of

from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.plan import Plan, RowBlock, expected_nbytes, make_plan
from arrowquant_dist.plan.batches import batches_of

STORED = {"zstd": 0.89, "none": 1.0}  # compressed size of int8 codes; fewer bits compress to 0.85 and 0.96
_OWN_REQUESTS = 5  # per shard: beginning and end of its upload, the commit, and requests of the client's own


@dataclass(frozen=True, slots=True)
class Work:
    """Arrays with one number per shard, largest shard first, which is the order in which they are handed out.

    params: number of weights. rows: number of row blocks. read: bytes read from the source. written: bytes of the part.
    gets, puts: number of requests. first: bytes that are read before the first row block can be quantized.
    layers: number of layers in all.
    """

    params: np.ndarray
    rows: np.ndarray
    read: np.ndarray
    written: np.ndarray
    gets: np.ndarray
    puts: np.ndarray
    first: np.ndarray
    layers: int

    @property
    def shards(self) -> int:
        return len(self.params)


def work_of(tensors: Tensors, config: QuantizationConfig, run: RunConfig) -> Work:
    return work_of_plan(make_plan(checkpoint_of(tensors), config, run), run)


def work_of_plan(plan: Plan, run: RunConfig) -> Work:
    shards = sorted(plan.shards, key=lambda shard: (-shard.source_nbytes, shard.index))
    columns: list[list[float]] = []
    for shard in shards:
        batches = [sum(map(_read_nbytes, batch)) for batch in batches_of(shard.blocks)]
        written = STORED[run.compression] * sum(map(expected_nbytes, shard.blocks))
        columns.append(
            [
                sum(block.num_params for block in shard.blocks),
                len(shard.blocks),
                sum(batches),
                written,
                sum(-(-nbytes // run.transfer.range_bytes) for nbytes in batches)
                + sum(len(block.layer.encoding.places) for block in shard.blocks),  # a request for its scales
                -(-written // run.transfer.upload_bytes) + _OWN_REQUESTS,
                batches[0],
            ]
        )
    layers = sum(block.row_start == 0 for block in plan.blocks)
    params, rows, read, written, gets, puts, first = np.array(columns, np.float64).T
    return Work(params, rows, read, written, gets, puts, first, layers)


def _read_nbytes(block: RowBlock) -> int:
    """Bytes of the block as stored: for a float8 source, half of those of its bfloat16 values."""
    return block.layer.nbytes * block.num_params // max(1, block.layer.num_params)
