"""Run by vLLM's interpreter: runs a model for each job that it is given, in a process of the job's own.

Importing vLLM takes longer than running a small model. So it is imported once here, and each job runs in a fork of this
process, which shares nothing else with the other jobs. stdin has the folder of a job per line; each answer is a line
that says how the job's process ended.

`job.json` in that folder has model, prompts (lists of token ids), tokens (how many to continue each prompt by; 0: embed
it), llm (further arguments of `LLM`) and environment. `result.json` gets tokens and their logprobs, with a list for
each prompt, or embeddings. `log.txt` gets the output of the process.
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
    os.dup2(2, 1)  # only answers go to stdout
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
    llm = LLM(  # models that embed need a tokenizer even if they are given ids
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
