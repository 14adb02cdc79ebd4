"""The real llama.cpp, from the package xllamacpp, which is in an environment of its own: it has 33 MB, and the package
does not depend on it.

`python -m tests.servers.llama_cpp MODEL FILE [--embeddings]`, with that package in its path, serves a model and writes
its address to FILE. stdout would not do for that, because another thread writes the server's own lines in between.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.servers.processes import ServerProcess

_VERSION = "2026.10.11549"
_CONTEXT = 512
_SEEN = 20  # number of most likely tokens that it returns


@dataclass(frozen=True)
class Answer:
    """The next token after a prompt. logprobs: log-probabilities of the most likely tokens, by their ids."""

    logprobs: dict[int, float]

    @property
    def best(self) -> int:
        return max(self.logprobs, key=lambda token: self.logprobs[token])


class LlamaCpp:
    """A server that answers when the constructor returns, and ends with the process that started it."""

    def __init__(self, packages: Path, model: Path, folder: Path, *, embeddings: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._address = folder / "address.txt"
        self._address.unlink(missing_ok=True)  # from an earlier server
        command = [sys.executable, "-m", __name__, str(model), str(self._address)]
        command += ["--embeddings"] if embeddings else []
        path = os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])
        self._server = ServerProcess(command, folder, self._address.exists, {"PYTHONPATH": path})

    def stop(self) -> None:
        self._server.kill()

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, including those that the model puts around it."""
        body = {"content": text, "add_special": True, "parse_special": True}
        return [int(token) for token in self._post("/tokenize", body)["tokens"]]

    def after(self, prompt: list[int]) -> Answer:
        # Restricts what it samples to a letter, because it returns nothing for half a character or the end of a text.
        # The probabilities that it returns stay the same.
        taken = {"logit_bias": [[self.tokens("a")[-1], 1000]], "temperature": 0, "n_predict": 1}
        body = {"prompt": prompt, "n_probs": _SEEN, "cache_prompt": False, **taken}
        (first,) = self._post("/completion", body)["completion_probabilities"]
        return Answer({found["id"]: found["logprob"] for found in first["top_logprobs"]})

    def embedding(self, text: str) -> list[float]:
        (found,) = self._post("/v1/embeddings", {"input": [text], "model": "it"})["data"]
        return [float(value) for value in found["embedding"]]

    def chat_template(self) -> str:
        return str(self._asked("GET", "/props")["chat_template"])

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._asked("POST", path, json.dumps(body).encode())

    def _asked(self, method: str, path: str, body: bytes | None = None) -> Any:
        with closing(HTTPConnection(self._address.read_text())) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == 200, text
            return json.loads(text)


def llama_cpp_packages() -> Path:
    """A folder that has only xllamacpp, for this Python; made once per machine and version."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arrowquant-dist-tests"
    folder = cache / f"xllamacpp-{_VERSION}-{sys.implementation.cache_tag}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as room:
        made = Path(room) / "packages"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(made)]
        subprocess.run([*pip, f"xllamacpp=={_VERSION}"], check=True)
        if not folder.is_dir():  # another session may have been faster
            made.rename(folder)
    return folder


def _serve(model: str, file: Path, *, embeddings: bool) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.embedding, params.warmup = embeddings, False
    params.n_ctx = params.n_batch = params.n_ubatch = _CONTEXT
    params.n_parallel, params.cpuparams.n_threads, params.n_gpu_layers = 1, 1, 0
    server = xllamacpp.Server(params)
    unfinished = file.with_suffix(".new")
    unfinished.write_text(server.listening_address.removeprefix("http://"))
    unfinished.rename(file)
    threading.Event().wait()


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]), embeddings="--embeddings" in sys.argv)
