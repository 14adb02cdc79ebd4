"""Runs vLLM for tests: a process in an environment of its own, with the package of this checkout, and its answers."""

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
FARTHEST = 0.06  # largest difference of log-probabilities from those of our decoded model
# vLLM multiplies int8 on the CPU with oneDNN. Without these instructions, that adds products in 16 bits, which
# saturate: its products of random codes are off by a seventh.
_CPU = Path("/proc/cpuinfo").read_text()
HAS_VNNI = re.search(r"\bavx\w*_vnni\b", _CPU) is not None
# With these, vLLM has a kernel of its own for int8, which takes activations of 16 bits alone.
HAS_AMX = re.search(r"\bamx_tile\b", _CPU) is not None
FARTHEST_INT8 = FARTHEST if HAS_VNNI else 0.1
_LENGTH, _CANDIDATES = 5, 256  # tokens per prompt; prompts to choose from at a time
_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_COLOR": "0",
    # vLLM's own kernel for 4 bits, which it chooses on any CPU but only has in its build for AVX-512. Without it, vLLM
    # chooses the kernel of the tests.
    "VLLM_DISABLED_KERNELS": "CPUWNA16LinearKernel",
}
# So that the process that fails reports the reason, and not one that it started.
_ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
_SEVERAL = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind"
}  # otherwise it wants a NUMA node for each, which small machines do not have
_KERNEL = "[vllm.general_plugins]\nreference = tests.plugins.vllm.reference_kernel:register\n"


@dataclass(frozen=True)
class Answer:
    """Greedy continuations of prompts.

    tokens: int64 [prompts, tokens]. logprobs: log-probability of each token. nbytes_read: bytes that the plugin read,
    as reported by each process.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    nbytes_read: tuple[int, ...] = ()

    def same_as(self, other: Answer) -> int:
        """Number of prompts that both continue with the same tokens."""
        return int((self.tokens == other.tokens).all(1).sum())

    def farthest_from(self, other: Answer) -> float:
        """The largest difference of log-probabilities of two answers with the same tokens."""
        return float((self.logprobs - other.logprobs).abs().max())

    def median_from(self, other: Answer) -> float:
        """The median of the differences of log-probabilities."""
        return float((self.logprobs - other.logprobs).abs().median())


class Vllm:
    """A running vLLM. scratch: a folder for its jobs and for the metadata of packages."""

    def __init__(self, scratch: Path) -> None:
        self._python = vllm_python()
        self._scratch = scratch
        self._metadata = installed_metadata(self._python, scratch / "metadata")
        kernel = self._say_installed("reference_kernel", "0")
        (kernel / "entry_points.txt").write_text(_KERNEL)
        # `vllm` looks up its version under this name. vLLM's own wheels for CPUs have it, but the one used here does
        # not.
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
        """Environment of programs that find this checkout's package and its entry points as if it were installed."""
        path = os.pathsep.join([str(CHECKOUT), str(self._metadata)])
        programs = os.pathsep.join([str(self._python.parent), os.environ["PATH"]])
        return {**os.environ, "PYTHONPATH": path, "PATH": programs, **_SETTINGS}

    def answer(self, model: Path, prompts: torch.Tensor, **llm: Any) -> Answer:
        """Continues the prompts. llm: further arguments of vLLM's `LLM`. Raises AssertionError with the end of the log
        if vLLM fails."""
        found, said = self._done(model, prompts, TOKENS, llm)
        return Answer(torch.tensor(found["tokens"]), torch.tensor(found["logprobs"]), nbytes_read(said))

    def embeddings(self, model: Path, prompts: torch.Tensor, **llm: Any) -> torch.Tensor:
        """The embeddings of the prompts, float [prompts, dimensions]."""
        found, _ = self._done(model, prompts, 0, {"runner": "pooling", **llm})
        return torch.tensor(found["embeddings"])

    def failure(self, model: Path, **llm: Any) -> str:
        """The log of a run that has to fail."""
        folder, code = self._run(model, torch.ones(1, 1, dtype=torch.int64), TOKENS, llm)
        assert code
        return (folder / "log.txt").read_text(errors="replace")

    def python(self, code: str, *arguments: str | Path, settings: Mapping[str, str] | None = None) -> str:
        """The output of a Python program that runs in vLLM's environment."""
        command = [self._python, "-c", code, *arguments]
        done = subprocess.run(
            command, env={**self.environment, **(settings or {})}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-6000:]
        return done.stdout

    def stop(self) -> None:
        """Ends the program. No job may be running."""
        assert self._program.stdin is not None
        self._program.stdin.close()
        assert self._program.wait() == 0
        assert self._program.stdout is not None
        self._program.stdout.close()

    def _say_installed(self, name: str, version: str) -> Path:
        """Creates metadata for a package of this name, and returns their folder."""
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
        """Runs a job. Returns its folder and how its process ended."""
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
    """The bytes that the plugin read, as reported by each process of vLLM."""
    return tuple(int(found) for found in re.findall(r"Read and verified (\d+) bytes", said))


@torch.no_grad()
def continued(model: PreTrainedModel) -> tuple[torch.Tensor, Answer]:
    """PROMPTS prompts and the model's continuations, chosen so that each token is clearly the likeliest.

    If two tokens are almost equally likely, rounding decides between them, and each program rounds in its own way.
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
    """The model's best token at each position of the answer, and its log-probability of the answer's token there."""
    ids = torch.cat([prompts, answer.tokens], 1)
    chances = model(ids).logits[:, _LENGTH - 1 : -1].float().log_softmax(-1)
    return Answer(chances.argmax(-1), chances.gather(-1, answer.tokens[..., None])[..., 0])
