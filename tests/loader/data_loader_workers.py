"""Reads a dataset in the workers of torch's DataLoader and writes what they return.

It is a process of its own, because a child forked from a process with threads of Ray, servers and hundreds of tests may
crash whatever it runs.

python -m tests.loader.data_loader_workers PATH METHOD WORKERS
"""

from __future__ import annotations

import json
import sys
import warnings

import torch

from arrowquant_dist.loader import WeightLoader


class Layers(torch.utils.data.Dataset[float]):
    """A torch dataset whose items are layer0, layer1 and so on, read by the loader that it was made with in whatever
    process it is."""

    def __init__(self, loader: WeightLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __getitem__(self, index: int) -> float:
        return float(self._loader[f"layer{index}"][0, 0])


def main(path: str, method: str, workers: str) -> None:
    warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
    batches = torch.utils.data.DataLoader(
        Layers(WeightLoader(path)), batch_size=8, num_workers=int(workers), multiprocessing_context=method
    )
    json.dump(torch.cat([*batches]).tolist(), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
