"""Changes finished datasets in ways open to anyone, including their hashes and seals."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from arrowquant_dist.target.plan_file import plan_file, read_plan_file
from tests.format.encoder import signed
from tests.fuzz.decoder import hash_of
from tests.fuzz.mutations import changed_at_random

Forgery = Callable[[Path, random.Random], None]
_BOMB_NBYTES = 1_500_000_000


def damaged_bytes(root: Path, random_: random.Random) -> None:
    path = random_.choice(_files(root))
    data = bytearray(path.read_bytes())
    how = random_.randrange(4)
    if how == 0:
        del data[random_.randrange(len(data) + 1) :]
    elif how == 1:
        data += random_.randbytes(random_.randrange(1, 5000))
    elif data:
        for _ in range(random_.choice([1, 1, 3, 30])):
            data[random_.randrange(len(data))] = random_.randrange(256)
    path.write_bytes(data)
    if random_.random() < 0.5:
        rehash(root)


def missing_file(root: Path, random_: random.Random) -> None:
    path = random_.choice(_files(root))
    path.unlink()
    how = random_.randrange(3)
    if how == 1:
        path.mkdir()
    elif how == 2:
        path.symlink_to(random_.choice(["/dev/zero", "/nowhere", path.name, "../../outside/secret"]))


def forged_manifest(root: Path, random_: random.Random) -> None:
    path = root / "manifest.json"
    path.write_text(json.dumps(changed_at_random(json.loads(path.read_bytes()), random_)))


def forged_aliases(root: Path, random_: random.Random) -> None:
    path = root / "manifest.json"
    manifest = json.loads(path.read_bytes())
    names = [*pq.read_table(root / "index.parquet")["layer_name"].to_pylist(), "nothing", "a", "b"]
    manifest["aliases"] |= {random_.choice(names): random_.choice(names) for _ in range(2)}
    path.write_text(json.dumps(manifest))


def forged_paths(root: Path, random_: random.Random) -> None:
    """Puts another path in place of one that the manifest names, sometimes with a correct hash."""
    path = root / "manifest.json"
    manifest = json.loads(path.read_bytes())
    entry = random_.choice(
        [manifest["index"], *manifest["parts"], *manifest["sidecars"], *manifest["report"]]
    )
    entry["path"] = random_.choice(
        [
            "../outside/secret",
            "/etc/passwd",
            "manifest.json",
            "weights",
            "index.parquet",
            "run/plan.arrow",
            ".",
            "a\0b",
            "//x",
        ]
    )
    path.write_text(json.dumps(manifest))
    if random_.random() < 0.5:
        rehash(root)


def forged_index(root: Path, random_: random.Random) -> None:
    """Changes values of the index, and its hash in the manifest."""
    path = root / "index.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    for _ in range(random_.choice([1, 1, 2, 4])):
        row = random_.choice(rows)
        name = random_.choice(table.schema.names)
        row[name] = _other_value(row[name], random_, [other[name] for other in rows])
    how = random_.random()
    if how < 0.1:
        rows.append(dict(random_.choice(rows)))
    elif how < 0.2:
        rows.remove(random_.choice(rows))
    _write(path, rows, table.schema)
    rehash(root)


def forged_ranges(root: Path, random_: random.Random) -> None:
    """Makes rows of the index point to each other's bytes."""
    path = root / "index.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    one, other = random_.choice(rows), random_.choice(rows)
    blob = random_.choice(["data", "scales", "zero_points", "chunk_digests"])
    for name in ("offset", "stored_nbytes", "nbytes"):
        one[f"{blob}_{name}"] = other[f"{random_.choice([blob, 'data'])}_{name}"]
    _write(path, rows, table.schema)
    rehash(root)


def forged_part(root: Path, random_: random.Random) -> None:
    """Changes values of a part, their checksums, and its hash in the manifest. Its bytes are at other offsets then."""
    path = random_.choice(sorted((root / "weights").rglob("*.parquet")))
    table = pq.read_table(pa.BufferReader(path.read_bytes()))
    rows = table.to_pylist()
    for _ in range(random_.choice([1, 1, 3])):
        row = random_.choice(rows)
        name = random_.choice(table.schema.names)
        row[name] = _other_value(row[name], random_, [other[name] for other in rows])
        if random_.random() < 0.7:
            row |= {
                name: value for name, value in signed(row).items() if name in ("chunk_digests", "checksum")
            }
    _write(path, rows, table.schema, compression=random_.choice(["none", "zstd", "snappy"]))
    if random_.random() < 0.7:
        rehash(root)
    if random_.random() < 0.6:  # makes bare files of it, which anyone can publish
        for name in ("manifest.json", "index.parquet"):
            (root / name).unlink()
        shutil.rmtree(root / "run")


def expanding_values(root: Path, random_: random.Random) -> None:
    """Appends a frame that decompresses to gigabytes to a part, and makes the index point to it."""
    index = root / "index.parquet"
    table = pq.read_table(index)
    rows = table.to_pylist()
    row = random_.choice(rows)
    path = root / row["part"]
    start = path.stat().st_size
    frame = _bomb(is_sized=random_.random() < 0.5)
    path.write_bytes(path.read_bytes() + frame)
    blob = random_.choice(["data", "scales", "chunk_digests"])
    row |= {f"{blob}_offset": start, f"{blob}_stored_nbytes": len(frame), "compression": "zstd"}
    if random_.random() < 0.3:
        row[f"{blob}_nbytes"] = _BOMB_NBYTES - 4
    _write(index, rows, table.schema)
    rehash(root)


def forged_plan(root: Path, random_: random.Random) -> None:
    """Changes values of run/plan.arrow, and seals it again."""
    path = root / "run" / "plan.arrow"
    table = read_plan_file(path.read_bytes(), "plan.arrow")
    if random_.random() < 0.3:
        metadata = dict(table.schema.metadata)
        key = random_.choice(sorted(metadata))
        try:
            metadata[key] = json.dumps(changed_at_random(json.loads(metadata[key]), random_)).encode()
        except ValueError:
            metadata[key] = random_.randbytes(8)
        table = table.replace_schema_metadata(metadata)
    else:
        rows = table.to_pylist()
        row = random_.choice(rows)
        name = random_.choice(table.schema.names)
        row[name] = _other_value(row[name], random_, [other[name] for other in rows])
        table = _table(rows, table.schema) or table
    path.write_bytes(plan_file(table))


def forged_commit(root: Path, random_: random.Random) -> None:
    path = random_.choice(sorted((root / "run" / "commits").iterdir()))
    head, _, body = path.read_bytes().partition(b',"receipt":')
    receipt = changed_at_random(json.loads(body[:-1]), random_)
    text = json.dumps(receipt, separators=(",", ":")).encode()
    new = json.loads(head + b"}") | {"checksum": hash_of(text)}
    path.write_bytes(json.dumps(new).encode()[:-1] + b',"receipt":' + text + b"}")
    if random_.random() < 0.7:
        (root / "manifest.json").unlink()  # without it, the commits count


def forged_report(root: Path, random_: random.Random) -> None:
    path = root / "report" / "report.json"
    path.write_text(json.dumps(changed_at_random(json.loads(path.read_bytes()), random_)))
    rehash(root)


def deep_json(root: Path, random_: random.Random) -> None:
    path = random_.choice([path for path in _files(root) if path.suffix == ".json"])
    path.write_bytes(
        random_.choice(
            [
                b"[" * 200_000 + b"]" * 200_000,
                b'{"a":' * 100_000,
                b"9" * 100_000,
                b'"' + b"\\" * 99_999,
                b"[" + b"0," * 2_000_000 + b"0]",
            ]
        )
    )


FORGERIES: dict[Forgery, float] = {
    damaged_bytes: 3,
    missing_file: 1,
    forged_manifest: 4,
    forged_aliases: 1,
    forged_paths: 2,
    forged_index: 4,
    forged_ranges: 1,
    forged_part: 4,
    expanding_values: 0.5,
    forged_plan: 2,
    forged_commit: 1,
    forged_report: 2,
    deep_json: 0.5,
}


def forge(root: Path, random_: random.Random) -> str:
    """Changes the dataset. Returns the names of the forgeries."""
    done: list[str] = []
    for forgery in random_.choices(list(FORGERIES), list(FORGERIES.values()), k=random_.choice([1, 1, 1, 2])):
        if done and not all(
            (root / name).is_file() for name in ("manifest.json", "index.parquet", "run/plan.arrow")
        ):
            break
        try:
            forgery(root, random_)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, pa.ArrowException):
            if not done:
                raise
            break  # the first forgery left nothing that this one could change
        done.append(forgery.__name__)
    return " ".join(done)


def rehash(root: Path) -> None:
    """Corrects the sizes and hashes that the manifest has of its files."""
    path = root / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        for entry in _entries(manifest):
            file = root / entry["path"]
            if file.is_file() and root in file.resolve().parents:
                data = file.read_bytes()
                entry |= {"nbytes": len(data), "hash": hash_of(data)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    path.write_text(json.dumps(manifest))


def _entries(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield manifest["index"]
    for key in ("parts", "sidecars", "report"):
        yield from manifest[key]


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def _other_value(value: Any, random_: random.Random, others: list[Any]) -> Any:
    if random_.random() < 0.2:
        return random_.choice(others)
    if isinstance(value, int):
        return random_.choice(
            [-1, 0, 1, 2, value + 1, value - 1, 2 * value, 2**31 - 1, 2**40, 2**62, 2**63 - 1]
        )
    if isinstance(value, bytes):
        flipped = bytes([value[0] ^ random_.randrange(1, 256)]) + value[1:] if value else b"\0"
        return random_.choice([b"", value + b"\0", value[:-1], flipped, bytes(1000), b"\xff" * len(value)])
    if isinstance(value, list):
        return random_.choice(
            [[], [0], [-1], [*value, 1], value[::-1], [2**31 - 1] * 2, value[1:], [1] * 100]
        )
    words = [
        "",
        "x",
        "../x",
        "int8",
        "int4",
        "fp16",
        "none",
        "zstd",
        "float64",
        "int64",
        "n" * 1000,
        "\x1b[31m<b>",
        "rtn",
    ]
    return random_.choice(words)


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table | None:
    try:
        return pa.table(
            {field.name: pa.array([row[field.name] for row in rows], field.type) for field in schema}, schema
        )
    except (pa.ArrowException, OverflowError):
        return None


def _write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema, **options: Any) -> None:
    """Writes the rows, or nothing if their values do not have the types of the schema."""
    table = _table(rows, schema)
    if table is not None:
        pq.write_table(table, path, **options)


@cache
def _bomb(*, is_sized: bool) -> bytes:
    zeros = bytes(_BOMB_NBYTES // 10)
    if is_sized:
        compressed: bytes = pa.Codec("zstd").compress(zeros, asbytes=True)
        return compressed
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(zeros)
    return bytes(out.getvalue())
