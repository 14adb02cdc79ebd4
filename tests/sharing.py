"""How several processes share the suite (`pytest -n 2`, by pytest-xdist): which tests stay together, and which run
first.

The tests of a module stay in one process, in their order, because its fixtures are expensive. So do all modules that
start a Ray, so that there is never more than one on the machine. They run first, being the largest group; the last of
the others are short, so that the processes end at the same time.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest

from tests.conftest import CHECKOUT

_RAY = "those with a Ray"
# A run with that engine, or a library, a program or a helper module that starts a Ray.
_STARTS_RAY = re.compile(
    r"engine=.ray|--engine\W+ray|\b(import|from) ray\b|\bimport local\b|\btests\.(engine\.ray|chaos\.cluster)\b"
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Moves tests with a Ray to the front, but only in processes that share the suite."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _group(item.nodeid) != _RAY)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Our scheduler, or None, which leaves the choice to xdist, if --dist asks for another way than its default."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    config.option.loadscopereorder = False  # they are in order already
    return Together(config, log)


def _group(nodeid: str) -> str:
    module = nodeid.split("::", 1)[0]
    return _RAY if _starts_ray(module) else module


@cache
def _starts_ray(module: str) -> bool:
    """Whether tests of the module start a Ray. module: its path in the checkout."""
    if module.startswith(("tests/engine/ray/", "tests/cluster/")):
        return True
    return _STARTS_RAY.search((CHECKOUT / module).read_text(encoding="utf-8")) is not None
