"""vLLM as tests run it: a process of its own environment, on this checkout's package, and what it answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tests.conftest import CHECKOUT
from tests.plugins.vllm.environment import installed_metadata, vllm_python

PROMPTS, TOKENS = 6, 8
_CANDIDATES, _LENGTH = 512, 5
_MARGIN = (
    0.15  # of log-probability, between the best token and the next: more than what rounding to bfloat16 does
)
_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_COLOR": "0",
}
# So that a process that fails says why itself, and not one that it started.
_ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
_SEVERAL = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind"
}  # it wants a NUMA node for each, which small machines do not have
_KERNEL = "[vllm.general_plugins]\nreference = tests.plugins.vllm.reference_kernel:register\n"


@dataclass(frozen=True)
class Answer:
    """Greedy continuations of prompts: int64 [prompts, tokens], and the log-probability of each token.

    nbytes_read: what each process says that the plugin read.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    nbytes_read: tuple[int, ...] = ()

    def same_as(self, other: Answer) -> int:
        """How many prompts are continued by the same tokens."""
        return int((self.tokens == other.tokens).all(1).sum())

    def farthest_from(self, other: Answer) -> float:
        """The largest difference of log-probabilities. The tokens are the same."""
        return float((self.logprobs - other.logprobs).abs().max())


class Vllm:
    """scratch: a folder for its jobs and for what an installed package would have."""

    def __init__(self, scratch: Path) -> None:
        self._python = vllm_python()
        self._scratch = scratch
        self._metadata = installed_metadata(self._python, scratch / "metadata")
        kernel = self._metadata / "reference_kernel-0.dist-info"
        kernel.mkdir()
        (kernel / "METADATA").write_text("Metadata-Version: 2.1\nName: reference-kernel\nVersion: 0\n")
        (kernel / "entry_points.txt").write_text(_KERNEL)

    def answer(self, model: Path, prompts: torch.Tensor, **llm: Any) -> Answer:
        """llm: further arguments of vLLM's `LLM`. AssertionError, with the end of its log, where it fails."""
        done, result = self._run(model, prompts, llm)
        assert done.returncode == 0, done.stderr[-6000:]
        found = json.loads(result.read_text())
        said = re.findall(r"Read and verified (\d+) bytes", done.stdout + done.stderr)
        return Answer(torch.tensor(found["tokens"]), torch.tensor(found["logprobs"]), tuple(map(int, said)))

    def failure(self, model: Path, **llm: Any) -> str:
        """What it says when it fails, which it has to."""
        done, _ = self._run(model, torch.ones(1, 1, dtype=torch.int64), llm)
        assert done.returncode != 0
        return done.stderr + done.stdout

    def python(self, code: str, *arguments: str | Path, settings: Mapping[str, str] | None = None) -> str:
        """What a program prints that runs in vLLM's environment."""
        command = [self._python, "-c", code, *arguments]
        done = subprocess.run(
            command, env=self._environment(settings or {}), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-6000:]
        return done.stdout

    def _run(
        self, model: Path, prompts: torch.Tensor, llm: Mapping[str, Any]
    ) -> tuple[subprocess.CompletedProcess[str], Path]:
        job, result = self._scratch / "job.json", self._scratch / "result.json"
        result.unlink(missing_ok=True)
        llm = {"dtype": "bfloat16", **llm}
        values = {"model": str(model), "prompts": prompts.tolist(), "tokens": TOKENS, "llm": llm}
        job.write_text(json.dumps(values))
        alone = _SEVERAL if llm.get("tensor_parallel_size", 1) > 1 else _ONE_PROCESS
        command: list[str | Path] = [self._python, "-m", "tests.plugins.vllm.program", job, result]
        done = subprocess.run(
            command,
            env=self._environment(alone),
            capture_output=True,
            text=True,
            check=False,
            cwd=self._scratch,
        )
        return done, result

    def _environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        path = os.pathsep.join([str(CHECKOUT), str(self._metadata)])
        return {**os.environ, "PYTHONPATH": path, **_SETTINGS, **settings}


@torch.no_grad()
def continued(model: PreTrainedModel) -> tuple[torch.Tensor, Answer]:
    """PROMPTS prompts, and what the model continues them by: such that no token is close to being another one.

    Where two tokens are almost as likely, rounding decides between them, and each program rounds in its own way.
    """
    random = torch.Generator().manual_seed(7)
    ids = torch.randint(model.config.vocab_size, (_CANDIDATES, _LENGTH), generator=random)
    margins, logprobs = [], []
    for _ in range(TOKENS):
        chances = model(ids).logits[:, -1].float().log_softmax(-1)
        best = chances.topk(2)
        margins.append(best.values[:, 0] - best.values[:, 1])
        logprobs.append(best.values[:, 0])
        ids = torch.cat([ids, best.indices[:, :1]], 1)
    decided = torch.nonzero(torch.stack(margins, 1).amin(1) > _MARGIN)[:PROMPTS, 0]
    assert len(decided) == PROMPTS
    chosen = ids[decided]
    return chosen[:, :_LENGTH], Answer(chosen[:, _LENGTH:], torch.stack(logprobs, 1)[decided])
