"""The suite tests the code of this checkout, in this process and in those that it starts, without a network."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]

pytest_plugins = ["tests.servers.fixtures"]

# Before any test imports these libraries. A program or a Ray worker that a test starts takes the package from here too,
# not from site-packages, where `pip install .` put a copy that may be older.
os.environ.update(
    PYTHONPATH=os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    RAY_USAGE_STATS_ENABLED="0",
)
os.environ.pop("RAY_ADDRESS", None)  # would turn engine `auto` to somebody's cluster
