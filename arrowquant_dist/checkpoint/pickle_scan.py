"""Looks through a pickle before anything loads it: operations, names, sizes. Nothing is built or called.

torch's weights_only unpickler refuses what could run code, but it would still take memory or time without end
for some pickles (`bytearray(10**12)`, a tuple of tuples whose hash takes years). Those are refused here, and
a name that weights_only does not allow is found without importing torch.
"""

from __future__ import annotations

import pickletools
import re
from typing import Any, NoReturn

from arrowquant_dist.checkpoint.torch_private import NAMES_IN_FILES, SPECIAL_NAMES_IN_FILES
from arrowquant_dist.errors import InvalidCheckpoint

_MAX_CALLS = 2_000_000
_MAX_TUPLE_VALUES = 10_000
_MAX_COUNT = 1 << 40  # counting further would only make long integers
_PROTOCOL = 2  # what torch.save writes, and all that weights_only reads

# What state dicts are made of: the part of weights_only's list that takes no memory by itself and that we can
# store. Storages and dtypes come on top, see _is_plain.
_ALLOWED = frozenset(
    {
        *NAMES_IN_FILES,
        "collections OrderedDict",
        "collections Counter",
        "torch.nn.parameter Parameter",
        "torch Size",
        "torch Tensor",
        "torch device",
        "torch.storage UntypedStorage",
        "torch.storage TypedStorage",
        "_codecs encode",
        "builtins set",
        "builtins complex",
        "__builtin__ set",
        "__builtin__ complex",
    }
)
# fmt: off
_OPERATIONS = frozenset({
    "APPEND", "APPENDS", "BINFLOAT", "BINGET", "BININT", "BININT1", "BININT2", "BINPERSID", "BINPUT",
    "BINUNICODE", "BUILD", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE", "GLOBAL", "LONG1",
    "LONG_BINGET", "LONG_BINPUT", "MARK", "NEWFALSE", "NEWOBJ", "NEWTRUE", "NONE", "PROTO", "REDUCE",
    "SETITEM", "SETITEMS", "SHORT_BINSTRING", "STOP", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
})
# fmt: on
_STORAGE_OR_DTYPE = re.compile(r"torch(\.cuda)? (\w+Storage|(b?float|complex|u?int|bool|qu?int)\w*)")
_SAVE_AGAIN = "save `model.state_dict()` with torch.save, or convert the file to safetensors"


def check_pickle(data: bytes, uri: str) -> None:
    """Raises InvalidCheckpoint, with the reason, unless `data` holds plain containers and tensors alone."""
    scan = _Scan(uri)
    try:
        for operation, argument, _ in pickletools.genops(data):
            scan.step(operation, argument)
    except InvalidCheckpoint:
        raise
    except (ValueError, LookupError, OverflowError, Warning) as error:
        raise InvalidCheckpoint(
            f"its pickle is damaged ({error}); download the file again", uri=uri
        ) from error


class _Scan:
    """The unpickler's stack with a number for each object: how many values one meets walking through it."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._stack: list[int] = []
        self._marks: list[int] = []
        self._memo: dict[int, int] = {}
        self._calls = 0

    def step(self, operation: pickletools.OpcodeInfo, argument: Any) -> None:
        name = operation.name
        if name == "PROTO" and argument != _PROTOCOL:
            self._refuse(
                f"its pickle is of protocol {argument}, weights_only reads protocol 2; {_SAVE_AGAIN}"
            )
        if name not in _OPERATIONS:
            self._refuse(f"its pickle uses {name}, which weights_only does not read; {_SAVE_AGAIN}")
        if name == "GLOBAL":
            self._check_global(argument)
        elif name == "LONG1" and abs(argument) >= 2**63:
            self._refuse(f"its pickle holds an integer beyond 64 bits; {_SAVE_AGAIN}")
        elif name in ("REDUCE", "NEWOBJ", "BINPERSID"):
            self._calls += 1
            if self._calls > _MAX_CALLS:
                self._refuse(f"its pickle makes more than {_MAX_CALLS} objects; this is no state dict")
        if name == "MARK":
            self._marks.append(len(self._stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        else:
            self._apply(operation)

    def _apply(self, operation: pickletools.OpcodeInfo) -> None:
        before = operation.stack_before
        if pickletools.markobject in before:
            start = self._marks.pop() - before.index(pickletools.markobject)
        else:
            start = len(self._stack) - len(before)
        if start < 0:
            raise IndexError("it takes more from the stack than there is")
        values = min(1 + sum(self._stack[start:]), _MAX_COUNT)
        del self._stack[start:]
        if operation.name.startswith("TUPLE") and values > _MAX_TUPLE_VALUES:
            self._refuse(f"its pickle has a tuple of over {_MAX_TUPLE_VALUES} values; this is no state dict")
        self._stack.extend([values] * len(operation.stack_after))

    def _check_global(self, name: str) -> None:
        if name in SPECIAL_NAMES_IN_FILES:
            self._refuse(
                f"it holds {SPECIAL_NAMES_IN_FILES[name]}, which have no plain values; {_SAVE_AGAIN}"
            )
        if name not in _ALLOWED and not _is_plain(name):
            self._refuse(
                f"its pickle asks for {name.replace(' ', '.')!r}, which weights_only does not allow as it "
                f"could run code; nothing of the file was loaded; {_SAVE_AGAIN}"
            )

    def _refuse(self, message: str) -> NoReturn:
        raise InvalidCheckpoint(message, uri=self._uri)


def _is_plain(name: str) -> bool:
    """Storage classes (`torch FloatStorage`) and dtypes (`torch float8_e4m3fn`)."""
    return _STORAGE_OR_DTYPE.fullmatch(name) is not None
