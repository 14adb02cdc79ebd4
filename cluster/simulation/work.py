"""What a plan asks of workers and storage, shard by shard: the program's own plan and its own batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from simulation.shapes import Tensors, checkpoint_of

from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.plan import Plan, RowBlock, expected_nbytes, make_plan
from arrowquant_dist.plan.batches import batches_of

STORED = {"zstd": 0.89, "none": 1.0}  # of int8 codes; fewer bits compress to 0.85 and 0.96
_OWN_REQUESTS = 5  # of a shard: begin and end of its upload, commit, and what the client asks besides


@dataclass(frozen=True, slots=True)
class Work:
    """One number a shard, largest first, as they are handed out.

    params: weights. rows: row blocks. read: bytes of the source. written: bytes of the part. gets, puts: requests.
    first: bytes that are read before the first row block can be quantized.
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
    """Of what is stored: half of the values' bytes where the source is float8."""
    return block.layer.nbytes * block.num_params // max(1, block.layer.num_params)
