"""The map of the package is true: which way imports point, what is imported when, how large modules are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Collection
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

PACKAGE = CHECKOUT / "arrowquant_dist"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400
MAX_SHARE = 0.2  # of the package's lines, in one room
# Seconds to import and hundreds of MiB, so a function that needs one imports it.
HEAVY = {"torch", "transformers", "pandas", "ray", "datasets", "matplotlib", "scipy", "vllm"}
# The same thing in two modules: a command and what it calls, a reader a file format, a twin for another version or for
# when a library's private names are gone.
ONE_MEANING = {
    "quantize",
    "verify",
    "evaluate",
    "calibrate",
    "distill",
    "validate",
    "read_layers",
    "fingerprint",
    "read_encodings",
    "loaded",
}
# Each of these in LLVM's instructions and, where Numba compiles nothing, in Python.
ONE_MEANING |= {
    *("to_float32", "magnitude", "ordered", "as_bits", "larger", "smaller"),
    *("round_half_even", "to_code", "from_code", "float32_bits", "to_bits"),
}
# `cluster` is tested beside the package.
OTHER_TESTS = {
    "benchmarks",
    "benchmarks/overview",
    "chaos",
    "fuzz",
    "cluster",
    "integration",
    "servers",
    "versions",
}
CLOCKS = {
    "waiting.py": "pauses between two looks",
    "held_worker.py": "so does the worker that is held",
    "engine/ray/runs.py": "the driver's clock, which tests put forward",
    "storage/test_s3_reads.py": "nothing is given up before its time: there is no upper bound",
    "integration/test_quantization_e2e.py": "prints a rate",
    "chaos/cluster.py": "a cloud's notice is a time",
}
TOP_LEVEL = {
    ".ci",
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "arrowquant_dist",
    "cluster",
    "configs",
    "pyproject.toml",
    "tests",
}


def test_imports_point_one_way() -> None:
    """The contracts of pyproject.toml, as `lint-imports` checks them."""
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=CHECKOUT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_imports_go_in_circles() -> None:
    """Imports inside functions and those of types alone are counted as well."""
    names = {module_name(path): path for path in MODULES}
    sorter = TopologicalSorter({name: imported(path, names) for name, path in names.items()})
    sorter.prepare()  # CycleError names the modules of a circle


def test_no_room_outgrows_the_others() -> None:
    lines: Counter[str] = Counter()
    for module in MODULES:
        lines[module.relative_to(PACKAGE).parts[0]] += len(module.read_text().splitlines())
    (room, most), *_ = lines.most_common()
    assert most <= MAX_SHARE * lines.total(), room


def test_heavy_libraries_wait_inside_functions() -> None:
    # Where the library itself imports the module, or is what it is about.
    allowed = {
        PACKAGE / "distillation": {"torch"},
        PACKAGE / "engine" / "ray": {"ray"},
        PACKAGE / "models": {"torch"},
        PACKAGE / "modules": {"torch"},
        PACKAGE / "plugins" / "vllm": {"torch", "vllm"},
    }
    found = {
        str(module): (imported_at_once(ast.parse(module.read_text())) & HEAVY)
        - allowed.get(module.parent, set())
        for module in MODULES
    }
    assert {module: heavy for module, heavy in found.items() if heavy} == {}


def test_a_module_can_be_read_in_one_sitting() -> None:
    lines = {str(module): len(module.read_text().splitlines()) for module in MODULES}
    assert {module: count for module, count in lines.items() if count > MAX_LINES} == {}


@pytest.mark.parametrize("arguments", [["--help"], ["quantize", "--help"], ["--version"]])
def test_help_imports_no_numbers(arguments: list[str]) -> None:
    code = """
import sys
from arrowquant_dist.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code
print("MODULES", *{name.partition(".")[0] for name in sys.modules})
"""
    command = [sys.executable, "-c", code, *arguments]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert not set(shown.split("MODULES")[1].split()) & (HEAVY | {"numpy", "pyarrow", "numba", "fsspec"})


def test_a_public_name_means_one_thing() -> None:
    modules: defaultdict[str, list[str]] = defaultdict(list)
    for module in MODULES:
        for name in defined(ast.parse(module.read_text())) - ONE_MEANING:
            modules[name].append(str(module.relative_to(PACKAGE)))
    assert not {name: found for name, found in modules.items() if len(found) > 1}


def test_nothing_lies_about_at_the_top() -> None:
    if not (CHECKOUT / ".git").exists():
        pytest.skip("only git knows what belongs to the project")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=CHECKOUT, check=True, capture_output=True, text=True
    ).stdout
    assert {line.split("/", 1)[0] for line in listed.splitlines()} <= TOP_LEVEL


def test_tests_lie_as_what_they_test() -> None:
    """A folder of tests is one of the package's; beside these is only what tests all of it, or helps to."""
    rooms = {path.parent.relative_to(PACKAGE) for path in MODULES}
    found = {path.parent.relative_to(CHECKOUT / "tests") for path in (CHECKOUT / "tests").rglob("*.py")}
    assert {str(folder) for folder in found - rooms} == OTHER_TESTS
    at_top = {path.stem.removeprefix("test_") for path in (CHECKOUT / "tests").glob("test_*.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert at_top - modules == {"architecture", "documents", "private_names", "public_surface"}


def test_tests_wait_for_what_happens_and_not_for_a_while() -> None:
    """A pause or a deadline that is enough on a quiet machine is not on a busy one. See tests/waiting.py."""
    pauses = re.compile(r"\btime\.(sleep|time|monotonic|perf_counter|process_time)\(")
    modules = (CHECKOUT / "tests").rglob("*.py")
    found = {str(path.relative_to(CHECKOUT / "tests")) for path in modules if pauses.search(path.read_text())}
    assert {name for name in found if not name.startswith("benchmarks/")} == set(CLOCKS)


def test_every_folder_of_tests_is_a_package() -> None:
    """So that modules of one name in two folders are two modules."""
    folders = {path.parent for path in (CHECKOUT / "tests").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def imported_at_once(module: ast.Module) -> set[str]:
    """Top-level packages that are imported with the module, types' imports aside."""
    found: set[str] = set()
    waiting: list[ast.stmt] = list(module.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


def defined(module: ast.Module) -> set[str]:
    """Public classes, functions and constants of a module."""
    found: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_") and len(name) > 1}


def module_name(path: Path) -> str:
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, modules: Collection[str]) -> set[str]:
    """Those of `modules` that the one at `path` imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in inside}
    return (found & set(modules)) - {module_name(path)}
