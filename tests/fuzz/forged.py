"""Runs everything that reads datasets on one forged dataset."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arrowquant_dist import WeightLoader
from arrowquant_dist.errors import ArrowQuantError
from tests.fuzz.compare import check_layer
from tests.fuzz.decoder import DecodedLayer, assembled, checked_by_ranges, read_dataset
from tests.fuzz.forgeries import forge
from tests.fuzz.loaded import BUDGET_NBYTES, raw, same_bits
from tests.fuzz.program import run
from tests.fuzz.settings import random_settings
from tests.fuzz.sources import Tensor, plain, shards, tied

_BASES = 12  # number of different datasets that are forged
_SECRET = b"of somebody else"


def dataset(seed: int, folder: Path) -> str:
    """Whatever was forged, every value that the loader gives matches its checksum, and every command ends in one
    line."""
    random_ = random.Random(seed)  # noqa: S311
    base = _base(folder.parent, seed % _BASES)
    root = folder / "target"
    shutil.copytree(base / "target", root)
    (folder / "outside").mkdir()
    (folder / "outside" / "secret").write_bytes(_SECRET)
    what = forge(root, random_)
    truth = _truth(root)
    loaded = _loaded(root, truth)
    sound = run("verify", str(root)).code == 0
    if sound:
        assert loaded == truth.keys(), "what is sound can be loaded"
    commands = [run("inspect", str(root)).code, run("report", str(root)).code]
    again = _requantized(root, folder / "again", truth)
    if random_.random() < 0.3:
        run("quantize", str(base / "source"), str(root), "--config", str(base / "config.yaml"), "--repair")
    commands.append(
        run("quantize", str(base / "source"), str(root), "--config", str(base / "config.yaml")).code
    )
    assert (folder / "outside" / "secret").read_bytes() == _SECRET
    assert [path.name for path in (folder / "outside").iterdir()] == ["secret"]
    return f"{'accepted' if sound else 'refused'} {what}: loaded {len(loaded)}, {commands}, again {again}"


def _base(folder: Path, number: int) -> Path:
    """A source and its dataset, made once."""
    base = folder / f"base-{number}"
    random_ = random.Random(number)  # noqa: S311
    while not (base / "target" / "manifest.json").exists():
        shutil.rmtree(base, ignore_errors=True)
        (base / "source").mkdir(parents=True)
        kind = random_.choice([plain, shards, tied])
        source = kind(base / "source", random_)
        settings = random_settings(random_, list(source.expected or {}))
        (base / "config.yaml").write_text(json.dumps(settings), encoding="utf-8")
        run("quantize", str(base / "source"), str(base / "target"), "--config", str(base / "config.yaml"))
    return base


def _truth(root: Path) -> dict[str, DecodedLayer]:
    """The layers that may be read: those whose rows match their checksums, by the manifest's index or in bare files."""
    path = root / "manifest.json"
    try:
        if path.is_file():
            manifest = json.loads(path.read_bytes())
            layers = checked_by_ranges(root, manifest["index"]["path"])
            return layers | {
                alias: layers[name] for alias, name in manifest["aliases"].items() if name in layers
            }
        rows = []
        for part in sorted(root.rglob("*.parquet")):
            if part.relative_to(root).parts[0] == "weights":
                rows += pq.read_table(pa.BufferReader(part.read_bytes())).to_pylist()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, pa.ArrowException):
        return {}
    return _layers_alone(rows)


def _layers_alone(rows: list[dict[str, object]]) -> dict[str, DecodedLayer]:
    """The layers that are correct, each judged by itself."""
    layers: dict[str, DecodedLayer] = {}
    for name in {str(row["layer_name"]) for row in rows}:
        try:
            layers |= assembled([row for row in rows if row["layer_name"] == name])
        except (AssertionError, ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError):
            continue
    return layers


def _loaded(root: Path, truth: dict[str, DecodedLayer]) -> set[str]:
    """The names of the layers that the loader gives. Asserts that all of their values are right."""
    found: set[str] = set()
    with suppress(ArrowQuantError), WeightLoader(str(root), memory_budget=BUDGET_NBYTES) as loader:
        for name in loader.keys():  # noqa: SIM118 - what iterates reads
            try:
                tensor = loader[name]
            except ArrowQuantError:
                continue
            assert name in truth, f"{name!r:.80} was loaded, and its bytes have no right checksum"
            assert same_bits(raw(tensor), truth[name]), f"{name!r:.80} was loaded with other values"
            found.add(name)
    return found


def _requantized(root: Path, target: Path, truth: dict[str, DecodedLayer]) -> int:
    ended = run("quantize", str(root), str(target))
    if ended.code:
        assert ended.code == 2, ended.error
        assert not (target / "manifest.json").exists()
        return ended.code
    layers = read_dataset(target)
    assert layers.keys() == truth.keys()
    for name, layer in layers.items():
        bits = np.concatenate([block.bits for block in truth[name].blocks])
        check_layer(
            layer,
            Tensor(truth[name].dtype, truth[name].shape, bits),
            {"quant_type": "int8", "symmetric": True, "method": "rtn"},
        )
    return 0
