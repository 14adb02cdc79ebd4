"""Commits as older releases wrote them."""

from __future__ import annotations

import json

import xxhash


def as_version_3(commit: bytes) -> bytes:
    """`commit`, which has version 4, as version 3, whose receipts did not say when a shard was begun, with what memory
    and by which thread."""
    head = json.loads(commit)
    receipt = head.pop("receipt")
    for name in ("started_at", "resident_nbytes", "thread"):
        del receipt[name]
    body = json.dumps(receipt, separators=(",", ":"))
    head |= {"commit_version": 3, "checksum": f"xxh3_128:{xxhash.xxh3_128_hexdigest(body.encode())}"}
    return f'{json.dumps(head, separators=(",", ":"))[:-1]},"receipt":{body}}}'.encode()
