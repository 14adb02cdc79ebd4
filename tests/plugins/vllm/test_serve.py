"""`vllm serve` over HTTP, as in the guide."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from tests.conftest import CHECKOUT
from tests.guides import BLOCKS
from tests.plugins.vllm.models import decoded, llama_config, save
from tests.plugins.vllm.serving import (
    FARTHEST,
    FARTHEST_INT8,
    PROMPTS,
    TOKENS,
    Answer,
    Vllm,
    continued,
    nbytes_read,
)
from tests.servers.ports import free_ports
from tests.servers.processes import ServerProcess
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Without it torch compiles the model by a C++ compiler, which takes minutes.
_EAGER = {"VLLM_CPU_CI_ENV": "1"}


def commands(served: str) -> list[list[str]]:
    """The block of the guide that serves the model of that name, a list of words a line."""
    (lines,) = (
        block.text.splitlines()
        for block in BLOCKS
        if block.guide == "arrowquant_dist/export/README.md" and f"vllm serve {served}" in block.text
    )
    return [shlex.split(line, comments=True) for line in lines]


def program(words: list[str], folder: Path, environment: dict[str, str]) -> None:
    assert words[0] == "arrowquant"
    command = [sys.executable, "-m", "arrowquant_dist", *words[1:]]
    path = {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        command, cwd=folder, env=environment | path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with the guide's models/llama and configs/."""
    source = save(llama_config(), tmp_path / "models" / "llama")
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(512)}))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(source)
    (tmp_path / "configs").symlink_to(CHECKOUT / "configs")
    return tmp_path


@contextmanager
def serving(words: list[str], folder: Path, environment: dict[str, str]) -> Iterator[HTTPConnection]:
    """A connection to a server that is ready, which has ended afterwards, with all that it started."""
    (port,) = free_ports(1)

    def is_ready() -> bool:
        try:
            with closing(HTTPConnection("127.0.0.1", port)) as asked:
                asked.request("GET", "/health")
                return asked.getresponse().status == 200
        except ConnectionError:
            return False

    command = [*words, "--host", "127.0.0.1", "--port", str(port)]
    server = ServerProcess(command, folder, is_ready, environment)
    with closing(HTTPConnection("127.0.0.1", port)) as connection:
        yield connection
    server.end()
    until(lambda: not running(server.pid))


def running(group: int) -> list[int]:
    """Processes of a process group, but those that have ended and that nobody asks for (`Z`)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


def completed(connection: HTTPConnection, model: str, prompts: torch.Tensor) -> Answer:
    body: dict[str, Any] = {"model": model, "prompt": prompts.tolist(), "max_tokens": TOKENS, "logprobs": 1}
    body |= {"temperature": 0, "ignore_eos": True, "return_token_ids": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status == 200, text
    choices = sorted(json.loads(text)["choices"], key=lambda choice: int(choice["index"]))
    return Answer(
        torch.tensor([choice["token_ids"] for choice in choices]),
        torch.tensor([choice["logprobs"]["token_logprobs"] for choice in choices]),
    )


def test_a_dataset_in_object_storage_is_served_as_the_readme_says(
    vllm: Vllm, seaweedfs: SeaweedFS, place: Path
) -> None:
    quantize, make, serve = commands("llama-w8")
    store = {
        "AWS_ACCESS_KEY_ID": seaweedfs.storage_options["key"],
        "AWS_SECRET_ACCESS_KEY": seaweedfs.storage_options["secret"],
        "AWS_ENDPOINT_URL_S3": seaweedfs.storage_options["client_kwargs"]["endpoint_url"],
    }
    seaweedfs.make_bucket("models")
    environment = {**vllm.environment, **store, **_EAGER}
    target = make[2]
    quantize[2] = "models/llama"  # which no bucket has
    for words in (quantize, make):
        program(words, place, environment)
    prompts, ours = continued(decoded(target, storage_options=seaweedfs.storage_options))
    with serving(serve, place, environment) as connection:
        answer = completed(connection, serve[2], prompts)
    assert answer.same_as(ours) == PROMPTS
    assert answer.farthest_from(ours) <= FARTHEST_INT8
    assert len(nbytes_read((place / "log.txt").read_text())) == 1
    seaweedfs.drop_bucket("models")


def test_an_export_is_served_as_the_readme_says(vllm: Vllm, place: Path) -> None:
    *make, serve = commands("out/llama-w4a16")
    environment = {**vllm.environment, **_EAGER}
    for words in make:
        program(words, place, environment)
    prompts, ours = continued(decoded(place / make[0][3]))
    with serving(serve, place, environment) as connection:
        answer = completed(connection, serve[2], prompts)
    assert answer.same_as(ours) == PROMPTS
    assert answer.farthest_from(ours) <= FARTHEST
