"""The digest of the code that decides bytes covers all of it, which nodes and resumed runs have to have in common."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from arrowquant_dist.code_digest import (
    CALIBRATES,
    DECIDES_BYTES,
    DECIDES_NOTHING,
    EXPORTS,
    TRAINS,
    calibration_digest,
    code_digest,
    digest_of,
    digests,
    export_digest,
    training_digest,
)
from tests.conftest import CHECKOUT

PACKAGE = CHECKOUT / "arrowquant_dist"

EXPORT_DECIDES = (*DECIDES_BYTES, *EXPORTS)
CALIBRATION_DECIDES = (*DECIDES_BYTES, *CALIBRATES)
TRAINING_DECIDES = (*CALIBRATION_DECIDES, *TRAINS)

# What a worker imports and no byte of a dataset, or of an export, depends on. An entry of DECIDES_BYTES within one of
# these counts.
CHANGES_NO_BYTES = (
    "__init__.py",  # names
    "displays.py",  # words
    "errors.py",  # words
    "location.py",  # places as callers give them
    "machine.py",  # figures of the machine
    "metrics.py",  # how far the stored values are from the source's: for the report
    "code_digest.py",
    "field_types.py",  # refuses receipts that are none
    "strict_json.py",  # refuses what other parsers would take, and reads the rest as they do
    "method_names.py",
    "config",  # is resolved into specs before a worker begins, and a plan's fingerprint holds those
    "plan",  # what it says is in its fingerprint
    "folder",  # which files are the source: a plan has the layers that were found in them
    "storage",  # moves bytes and makes none
    "target",  # which parts count, not what is in them
    "modules",  # what keeps codes in the place of weights, which no calibration does
    "texts",  # are in a calibration's fingerprint, as tokens
    "engine",  # who runs the workers: an export's story is imported with its worker
    "sizing",  # chooses a config, which plans and calibrations have in their fingerprints
    "reduce",  # reports
    "progress",  # draws how far it is
    "report",  # words of that
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package's modules."""
    return shutil.copytree(
        PACKAGE, tmp_path / "arrowquant_dist", ignore=shutil.ignore_patterns("__pycache__")
    )


@pytest.mark.parametrize(
    "module",
    [
        "kernels/rtn.py",
        "kernels/zstd/frames.py",
        "methods/mse.py",
        "tensor/quantize.py",
        "checkpoint/safetensors.py",
        "encodings/rows.py",
        "format/schema.py",
        "worker/shard.py",
        "config/spec.py",
    ],
)
def test_other_code_that_decides_bytes_is_another_digest(package: Path, module: str) -> None:
    before = digest_of(package, DECIDES_BYTES), digest_of(package, EXPORT_DECIDES)
    path = package / module
    path.write_text(path.read_text() + "\n_ANOTHER = 1\n")
    assert digest_of(package, DECIDES_BYTES) != before[0]
    assert digest_of(package, EXPORT_DECIDES) != before[1]


@pytest.mark.parametrize(
    "module", ["export/worker.py", "export/decoded.py", "export/gguf/blocks.py", "export/NEW.py"]
)
def test_other_code_of_exports_is_another_export_and_the_same_dataset(package: Path, module: str) -> None:
    path = package / module
    path.write_text((path.read_text() if path.exists() else "") + "\n_ANOTHER = 1\n")
    assert digest_of(package, EXPORT_DECIDES) != export_digest()
    assert digest_of(package, DECIDES_BYTES) == code_digest()


@pytest.mark.parametrize("module", ["calibration/worker.py", "models/sums.py", "loader/loads.py"])
def test_other_code_that_runs_the_model_is_another_calibration_and_the_same_dataset(
    package: Path, module: str
) -> None:
    path = package / module
    path.write_text(path.read_text() + "\n_ANOTHER = 1\n")
    assert digest_of(package, CALIBRATION_DECIDES) != calibration_digest()
    assert digest_of(package, DECIDES_BYTES) == code_digest()


def test_other_code_that_trains_is_another_training_and_the_same_calibration(package: Path) -> None:
    path = package / "distillation" / "losses.py"
    path.write_text(path.read_text() + "\n_ANOTHER = 1\n")
    assert digest_of(package, TRAINING_DECIDES) != training_digest()
    assert digest_of(package, CALIBRATION_DECIDES) == calibration_digest()
    assert training_digest() in digests()


def test_a_module_under_another_name_is_another_digest(package: Path) -> None:
    before = digest_of(package, DECIDES_BYTES)
    (package / "kernels" / "rtn.py").rename(package / "kernels" / "round.py")
    assert digest_of(package, DECIDES_BYTES) != before


def test_equal_code_elsewhere_is_the_same_digest(package: Path) -> None:
    (package / "report" / "text.py").write_text("")
    assert digest_of(package, DECIDES_BYTES) == code_digest()
    assert digest_of(package, EXPORT_DECIDES) == export_digest()


def test_products_with_packed_rows_are_in_no_digest_and_no_worker_imports_them(package: Path) -> None:
    (package / "kernels" / "products" / "rows.py").write_text("")
    assert digest_of(package, DECIDES_BYTES) == code_digest()
    assert digest_of(package, EXPORT_DECIDES) == export_digest()
    reached = _reached("arrowquant_dist.worker.shard") | _reached("arrowquant_dist.export.worker")
    assert not [path for path in reached if _covered(path, DECIDES_NOTHING)]


@pytest.mark.parametrize(
    ("worker", "decisive"),
    [
        ("arrowquant_dist.worker.shard", DECIDES_BYTES),
        ("arrowquant_dist.export.worker", EXPORT_DECIDES),
        ("arrowquant_dist.calibration.worker", CALIBRATION_DECIDES),
    ],
    ids=["quantize", "export", "calibrate"],
)
def test_all_that_a_worker_imports_is_in_the_digest_or_changes_no_bytes(
    worker: str, decisive: tuple[str, ...]
) -> None:
    reached = _reached(worker)
    assert len(reached) > 50
    assert not sorted(p for p in reached if not _covered(p, decisive) and not _covered(p, CHANGES_NO_BYTES))


def test_quantize_and_its_workers_import_nothing_of_exports() -> None:
    reached = _reached("arrowquant_dist.driver") | _reached("arrowquant_dist.worker.shard")
    assert not [path for path in reached if _covered(path, EXPORTS)]


def test_the_lists_name_only_what_is_there() -> None:
    assert not [
        name
        for name in (*EXPORT_DECIDES, *CALIBRATES, *TRAINS, *DECIDES_NOTHING, *CHANGES_NO_BYTES)
        if not (PACKAGE / name).exists()
    ]


def _covered(path: str, names: tuple[str, ...]) -> bool:
    return any(path == name or path.startswith(f"{name}/") for name in names)


def _reached(module: str) -> set[str]:
    """Paths under the package of `module` and all that it imports, in functions too and by way of others."""
    reached: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if path is None or name in reached:
            continue
        reached[name] = path.relative_to(PACKAGE).as_posix()
        waiting += [name.rpartition(".")[0], *_imported(path)]
    return set(reached.values())


def _path(module: str) -> Path | None:
    """The file of a module of ours, None for others and for names that a module defines."""
    place = CHECKOUT.joinpath(*module.split("."))
    if not module.startswith("arrowquant_dist"):
        return None
    return next((p for p in (place.with_suffix(".py"), place / "__init__.py") if p.exists()), None)


@cache
def _imported(path: Path) -> tuple[str, ...]:
    """Modules, and names that may be modules, types' imports aside."""
    return tuple(_imports(ast.parse(path.read_text())))


def _imports(tree: ast.Module) -> Iterator[str]:
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
