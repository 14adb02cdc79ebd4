"""Run by vLLM's interpreter: runs a model for each job that it is told of, in a process of the job's own.

vLLM takes longer to import than a small model to run. So it is imported here once, and each job runs in a fork of this
process, which shares nothing with the other jobs but that. stdin has a job's folder a line; what is answered is a line
with how its process ended.

`job.json` there has model, prompts (lists of token ids), tokens (how many to continue each prompt by; 0 embeds it),
llm (further arguments of `LLM`) and environment. `result.json` gets tokens, and logprobs of each, a list a prompt; or
embeddings. `log.txt` gets what the process says.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # answers alone go to stdout
    forked = multiprocessing.get_context("fork").Process
    for line in sys.stdin:
        process = forked(target=run, args=(Path(line.strip()),))
        process.start()
        process.join()
        print(process.exitcode, file=answers, flush=True)


def run(folder: Path) -> None:
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    job: dict[str, Any] = json.loads((folder / "job.json").read_text())
    os.environ.update(job["environment"])
    is_asked_for_tokens = job["tokens"] > 0
    llm = LLM(  # what embeds has to have a tokenizer, though it is given ids
        job["model"],
        skip_tokenizer_init=is_asked_for_tokens,
        enforce_eager=True,
        max_model_len=128,
        **job["llm"],
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
    result = continued(llm, prompts, job["tokens"]) if is_asked_for_tokens else embedded(llm, prompts)
    (folder / "result.json").write_text(json.dumps(result))


def continued(llm: LLM, prompts: list[Any], tokens: int) -> dict[str, Any]:
    greedy = SamplingParams(max_tokens=tokens, temperature=0, logprobs=1, detokenize=False, ignore_eos=True)
    found = [output.outputs[0] for output in llm.generate(prompts, greedy)]
    return {
        "tokens": [[*one.token_ids] for one in found],
        "logprobs": [
            [step[token].logprob for token, step in zip(one.token_ids, one.logprobs, strict=True)]
            for one in found
        ],
    }


def embedded(llm: LLM, prompts: list[Any]) -> dict[str, Any]:
    return {"embeddings": [output.outputs.embedding for output in llm.embed(prompts)]}


if __name__ == "__main__":
    main()
