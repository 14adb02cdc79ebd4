"""The lines of JSON that an engine logs, one a shard."""

from __future__ import annotations

import json
from typing import Any

import pytest


def shard_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [
        json.loads(record.message) for record in caplog.records if record.name == "arrowquant_dist.shards"
    ]
