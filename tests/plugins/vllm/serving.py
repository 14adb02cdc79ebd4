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
from tests.plugins.vllm.environment import VLLM, installed_metadata, vllm_python

PROMPTS, TOKENS = 6, 8
FARTHEST = 0.06  # of log-probabilities, from those of our decoded model
# Without such instructions oneDNN, by which vLLM multiplies int8 on the CPU, adds products in 16 bits, which saturate:
# by a seventh it misses products of random codes.
HAS_VNNI = re.search(r"\bavx\w*_vnni\b", Path("/proc/cpuinfo").read_text()) is not None
FARTHEST_INT8 = FARTHEST if HAS_VNNI else 0.1
_LENGTH, _CANDIDATES = 5, 256  # tokens of a prompt; prompts to choose from at a time
_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_COLOR": "0",
    # Its own for 4 bits, which it takes on any CPU and has in its build for AVX-512 alone; then the tests' is taken.
    "VLLM_DISABLED_KERNELS": "CPUWNA16LinearKernel",
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

    def median_from(self, other: Answer) -> float:
        """The median of these differences."""
        return float((self.logprobs - other.logprobs).abs().median())


class Vllm:
    """scratch: a folder for its jobs and for what an installed package would have."""

    def __init__(self, scratch: Path) -> None:
        self._python = vllm_python()
        self._scratch = scratch
        self._metadata = installed_metadata(self._python, scratch / "metadata")
        kernel = self._say_installed("reference_kernel", "0")
        (kernel / "entry_points.txt").write_text(_KERNEL)
        # `vllm` asks for its version by this name, which vLLM's own wheels for the CPU have, and this one has not.
        self._say_installed("vllm", f"{VLLM.partition('==')[2]}+cpu")
        self._jobs = 0
        self._program = subprocess.Popen(
            [self._python, "-m", "tests.plugins.vllm.program"],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=scratch,
            start_new_session=True,
        )

    @property
    def environment(self) -> dict[str, str]:
        """Of programs that have this checkout's package and its entry points, as if it were installed."""
        path = os.pathsep.join([str(CHECKOUT), str(self._metadata)])
        programs = os.pathsep.join([str(self._python.parent), os.environ["PATH"]])
        return {**os.environ, "PYTHONPATH": path, "PATH": programs, **_SETTINGS}

    def answer(self, model: Path, prompts: torch.Tensor, **llm: Any) -> Answer:
        """llm: further arguments of vLLM's `LLM`. AssertionError, with the end of its log, where it fails."""
        found, said = self._done(model, prompts, TOKENS, llm)
        return Answer(torch.tensor(found["tokens"]), torch.tensor(found["logprobs"]), nbytes_read(said))

    def embeddings(self, model: Path, prompts: torch.Tensor, **llm: Any) -> torch.Tensor:
        """float [prompts, dimensions]."""
        found, _ = self._done(model, prompts, 0, {"runner": "pooling", **llm})
        return torch.tensor(found["embeddings"])

    def failure(self, model: Path, **llm: Any) -> str:
        """What it says when it fails, which it has to."""
        folder, code = self._run(model, torch.ones(1, 1, dtype=torch.int64), TOKENS, llm)
        assert code
        return (folder / "log.txt").read_text(errors="replace")

    def python(self, code: str, *arguments: str | Path, settings: Mapping[str, str] | None = None) -> str:
        """What a program prints that runs in vLLM's environment."""
        command = [self._python, "-c", code, *arguments]
        done = subprocess.run(
            command, env={**self.environment, **(settings or {})}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-6000:]
        return done.stdout

    def stop(self) -> None:
        """Ends its program, when that has no job."""
        assert self._program.stdin is not None
        self._program.stdin.close()
        assert self._program.wait() == 0
        assert self._program.stdout is not None
        self._program.stdout.close()

    def _say_installed(self, name: str, version: str) -> Path:
        """The folder of the metadata that a package of this name would have."""
        folder = self._metadata / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        return folder

    def _done(
        self, model: Path, prompts: torch.Tensor, tokens: int, llm: Mapping[str, Any]
    ) -> tuple[dict[str, Any], str]:
        folder, code = self._run(model, prompts, tokens, llm)
        said = (folder / "log.txt").read_text(errors="replace")
        assert code == 0, said[-6000:]
        found: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return found, said

    def _run(
        self, model: Path, prompts: torch.Tensor, tokens: int, llm: Mapping[str, Any]
    ) -> tuple[Path, int]:
        """The job's folder, and how its process ended."""
        self._jobs += 1
        folder = self._scratch / f"job-{self._jobs}"
        folder.mkdir()
        llm = {"dtype": "bfloat16", **llm}
        environment = _SEVERAL if llm.get("tensor_parallel_size", 1) > 1 else _ONE_PROCESS
        job = {"model": str(model), "prompts": prompts.tolist(), "tokens": tokens, "llm": llm}
        (folder / "job.json").write_text(json.dumps({**job, "environment": environment}))
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(f"{folder}\n")
        self._program.stdin.flush()
        ended = self._program.stdout.readline()
        assert ended, "vLLM's program has ended"
        return folder, int(ended)


def nbytes_read(said: str) -> tuple[int, ...]:
    """What each process of vLLM says that the plugin read."""
    return tuple(int(found) for found in re.findall(r"Read and verified (\d+) bytes", said))


@torch.no_grad()
def continued(model: PreTrainedModel) -> tuple[torch.Tensor, Answer]:
    """PROMPTS prompts, and what the model continues them by: such that no token is close to being another one.

    Where two tokens are almost as likely, rounding decides between them, and each program rounds in its own way.
    """
    random = torch.Generator().manual_seed(7)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    while sum(len(ids) for ids, _ in found) < PROMPTS:
        ids = torch.randint(model.config.vocab_size, (_CANDIDATES, _LENGTH), generator=random)
        logprobs = torch.empty(_CANDIDATES, 0)
        for _ in range(TOKENS):
            best = model(ids).logits[:, -1].float().log_softmax(-1).topk(2)
            is_decided = best.values[:, 0] - best.values[:, 1] > 2 * FARTHEST
            ids = torch.cat([ids, best.indices[:, :1]], 1)[is_decided]
            logprobs = torch.cat([logprobs, best.values[:, :1]], 1)[is_decided]
        found.append((ids, logprobs))
    ids, logprobs = (torch.cat(parts)[:PROMPTS] for parts in zip(*found, strict=True))
    return ids[:, :_LENGTH], Answer(ids[:, _LENGTH:], logprobs)


@torch.no_grad()
def judged(model: PreTrainedModel, prompts: torch.Tensor, answer: Answer) -> Answer:
    """What the model has in each place of the answer: its best token, and the log-probability of the answer's."""
    ids = torch.cat([prompts, answer.tokens], 1)
    chances = model(ids).logits[:, _LENGTH - 1 : -1].float().log_softmax(-1)
    return Answer(chances.argmax(-1), chances.gather(-1, answer.tokens[..., None])[..., 0])
