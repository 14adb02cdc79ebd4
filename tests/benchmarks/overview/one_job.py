"""One file-to-file job in a process of its own: `python one_job.py JOB SOURCE OUT WORKERS` → its seconds, and the peak
of the process. What it imports does not count.

A script that needs nothing beside it, so that any interpreter runs it in which the peer is installed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path


def ours(source: str, out: str, workers: int, config: str, run: dict[str, object]) -> float:
    """config: a preset."""
    from arrowquant_dist import RunConfig
    from arrowquant_dist.config import load_config
    from arrowquant_dist.driver import quantize

    settings, _ = load_config(config)
    how = RunConfig.from_dict({"engine": "inline", "workers": workers, **run})
    return _timed(lambda: quantize(source, out, settings, how))


def llm_compressor(source: str, out: str, workers: int, scheme: str) -> float:
    from llmcompressor import model_free_ptq

    return _timed(lambda: model_free_ptq(source, out, scheme=scheme, max_workers=workers, device="cpu"))


def auto_round(source: str, out: str, workers: int, scheme: str) -> float:
    """Round to nearest, without a search, in its model-free way."""
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
            enable_torch_compile=False,  # which takes longer than it saves
            device_map="cpu",
        )
        rounder.quantize_and_save(output_dir=out, format="auto_round")

    return _timed(run)


def _timed(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


JOBS: dict[str, Callable[..., float]] = {
    "ours": ours,
    "llm-compressor": llm_compressor,
    "auto-round": auto_round,
}


def main() -> None:
    name, source, out, workers, options = sys.argv[1:]
    with redirect_stdout(sys.stderr):
        seconds = JOBS[name](source, out, int(workers), **json.loads(options))
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(status.split("VmHWM:")[1].split(maxsplit=1)[0]) * 1024
    print(json.dumps({"seconds": seconds, "peak_nbytes": peak}))


if __name__ == "__main__":
    main()
