"""Private names of other packages are used in one module per library, which knows what to do without them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.conftest import CHECKOUT

PACKAGE = CHECKOUT / "arrowquant_dist"
FENCES = {
    "checkpoint/torch_private.py",
    "engine/ray/private.py",
    "kernels/numba_private.py",
    "kernels/xxhash_private.py",
    "plugins/vllm/torch_private.py",
    "storage/remote/aiobotocore_private.py",
    "storage/remote/fsspec_private.py",
    "storage/remote/s3fs_private.py",
}
MODULES = sorted(PACKAGE.rglob("*.py"))
# Not private by their spelling, and by what their packages say of them.
INTERNAL = re.compile(r"numba\.(core|np|cpython|typed|misc)\b|ray\.core\b")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
_BY_NAME = {"getattr", "setattr", "hasattr", "delattr", "attrgetter", "methodcaller"}


def test_private_names_of_other_packages_stand_in_fences_alone() -> None:
    found = {
        name: list(private_names(ast.parse(module.read_text())))
        for module in MODULES
        if (name := str(module.relative_to(PACKAGE))) not in FENCES
    }
    assert {name: names for name, names in found.items() if names} == {}


def test_each_fence_is_there_and_says_what_it_was_written_for() -> None:
    for fence in FENCES:
        docstring = ast.get_docstring(ast.parse((PACKAGE / fence).read_text())) or ""
        assert re.search(r"Written for [\w ]+ \d+\.\d+", docstring), fence


@pytest.mark.parametrize(
    "code",
    [
        "from ray._private.node import Node",
        "import torch._C",
        "from numba.core import cgutils",
        "import numba.core.caching",
        "from fsspec.asyn import _run_coros_in_chunks",
        "def f(self):\n  return self._fs._call_s3",
        "ray._private.state",
        "x._cache._impl = 3",
        "getattr(fs, '_cat_file')",
        "getattr(fs, f'_{method}')",
        "getattr(fs, '_' + method)",
        "setattr(cls, name='_x', value=1)",
        "import_module('torch._subclasses.fake_tensor')",
        "importlib.import_module('numba.core.caching')",
        "njit(f, _nrt=False)",
        "class A:\n  def f(self, other):\n    self._mine = 1\n    return other._theirs",
    ],
)
def test_a_private_name_is_found_however_it_is_reached(code: str) -> None:
    assert list(private_names(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "from __future__ import annotations",
        "class A:\n  def f(self, other):\n    self._mine = 1\n    return other._mine",
        "class A:\n  __slots__ = ('_x',)\n  def f(self):\n    return self._inherited",
        "object.__setattr__(self, '_x', 1)",
        "super().__init__()",
        "def f(store):\n  return store._own()\ndef _own(): ...",
        "'torch._utils _rebuild_tensor'",
    ],
)
def test_names_of_our_own_are_no_ones_business(code: str) -> None:
    assert not list(private_names(ast.parse(code)))


def private_names(module: ast.Module) -> Iterator[str]:
    """Names of others that a module uses though they begin with an underscore, or are known to be internal.

    A module's own are those that it defines: by `def`, `class`, an assignment, or as an attribute of `self`. So an
    attribute `_x` of anything but `self` and `cls` is somebody else's unless `_x` is defined in the same module.
    """
    own = set(_defined(module))
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_private(alias.name))
        elif isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name for name in names if not name.startswith("__future__") and _is_private(name))
        elif isinstance(node, ast.Attribute):
            if _begins(node.attr) and node.attr not in own and not _is_self(node.value):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call):
            yield from _named_in_call(node, own)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
            yield from (name for name in (node.value,) if _is_private(name))


def _named_in_call(call: ast.Call, own: set[str]) -> Iterator[str]:
    """Attributes that are named by a text, and arguments by keyword."""
    yield from (
        f"{word.arg}=" for word in call.keywords if word.arg and _begins(word.arg) and word.arg not in own
    )
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function not in _BY_NAME:
        return
    for argument in [*call.args, *(word.value for word in call.keywords)]:
        text = _beginning(argument)
        if text is not None and _begins(text) and text not in own:
            yield ast.unparse(call)


def _beginning(node: ast.expr) -> str | None:
    """Of a text that is put together, what it begins with."""
    if isinstance(node, ast.JoinedStr) and node.values:
        return _beginning(node.values[0])
    if isinstance(node, ast.BinOp):
        return _beginning(node.left)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _defined(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg


def _is_private(dotted: str) -> bool:
    return any(_begins(part) for part in dotted.split(".")) or INTERNAL.match(dotted) is not None


def _begins(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")
