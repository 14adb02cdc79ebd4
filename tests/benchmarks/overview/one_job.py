"""One file-to-file job of a peer in a process of its own: `python one_job.py PEER SOURCE OUT WORKERS SCHEME` → its
seconds without imports.

The script needs no other module of this repository, so that any interpreter that has the peer can run it. Ours is
measured by tests/benchmarks/run_one.py.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout


def llm_compressor(source: str, out: str, workers: int, scheme: str) -> float:
    from llmcompressor import model_free_ptq

    return _timed(lambda: model_free_ptq(source, out, scheme=scheme, max_workers=workers, device="cpu"))


def auto_round(source: str, out: str, workers: int, scheme: str) -> float:
    """Rounds to nearest, without a search, in auto-round's model-free mode. Returns the seconds."""
    import torch
    from auto_round import AutoRound

    torch.set_num_threads(workers)

    def run() -> None:
        rounder = AutoRound(
            source,
            scheme=scheme,
            iters=0,
            disable_opt_rtn=True,
            model_free=True,
            enable_torch_compile=False,  # compiling takes longer than it saves
            device_map="cpu",
        )
        rounder.quantize_and_save(output_dir=out, format="auto_round")

    return _timed(run)


def _timed(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


JOBS: dict[str, Callable[..., float]] = {
    "llm-compressor": llm_compressor,
    "auto-round": auto_round,
}


def main() -> None:
    name, source, out, workers, scheme = sys.argv[1:]
    with redirect_stdout(sys.stderr):
        seconds = JOBS[name](source, out, int(workers), scheme)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
