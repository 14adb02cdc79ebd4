from __future__ import annotations

from tests.storage.s3_faults import flaky

__all__ = ["flaky"]
