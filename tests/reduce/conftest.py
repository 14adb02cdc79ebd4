from __future__ import annotations

import pytest

from arrowquant_dist.reduce import ReportFigures
from tests.reduce.made import RUN, plan_of, receipts_of, reduce_receipts


@pytest.fixture(scope="session")
def report() -> ReportFigures:
    return reduce_receipts(receipts_of(), plan_of(), RUN)
