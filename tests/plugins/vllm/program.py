"""Run by vLLM's interpreter: `program.py JOB.json RESULT.json` loads a model and continues prompts greedily.

A job: model, prompts (lists of token ids), tokens (how many), llm (further arguments of `LLM`). The result: tokens, and
logprobs of each, a list a prompt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams


def main(job_file: str, result_file: str) -> None:
    job: dict[str, Any] = json.loads(Path(job_file).read_text())
    llm = LLM(job["model"], skip_tokenizer_init=True, enforce_eager=True, max_model_len=128, **job["llm"])
    greedy = SamplingParams(
        max_tokens=job["tokens"], temperature=0, logprobs=1, detokenize=False, ignore_eos=True
    )
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in job["prompts"]], greedy)
    found = [output.outputs[0] for output in outputs]
    result = {
        "tokens": [[*one.token_ids] for one in found],
        "logprobs": [
            [step[token].logprob for token, step in zip(one.token_ids, one.logprobs, strict=True)]
            for one in found
        ],
    }
    Path(result_file).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
