from __future__ import annotations

import pytest

from arrowquant_dist.reduce import Report
from tests.reduce.made import RUN, plan_of, receipts_of, reduce_receipts


@pytest.fixture(scope="session")
def report() -> Report:
    return reduce_receipts(receipts_of(), plan_of(), RUN)
