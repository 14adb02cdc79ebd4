"""Walks through a pickle before anything loads it: every operation, name and argument. Nothing is built or called.

torch's weights_only unpickler refuses what could run code, but some pickles of a few KB make it take unlimited memory
or time: chained `_codecs.encode(x, "hex")`, `bytearray(10**12)`, sets of colliding keys, a million tensors that are
one pair of memo entries. So a pickle is walked here first, as the unpickler would do it, with stand-ins for the
objects it would make. A name is allowed only with the arguments that torch.save gives it, everything that copies or
hashes its argument is counted, and the total may be no more than a small multiple of the pickle's size. A pickle that
passes can be loaded in time and memory linear in that size.
"""

from __future__ import annotations

import pickletools
from typing import Any

from arrowquant_dist.checkpoint.pickle_calls import (
    SAVE_AGAIN,
    Dict,
    Made,
    Name,
    PickleBudget,
    Tuple,
    build,
    call,
    fill,
    is_known,
    new,
    refuse_pickle,
    storage,
)
from arrowquant_dist.checkpoint.torch_private import SPECIAL_NAMES_IN_FILES
from arrowquant_dist.errors import InvalidCheckpoint

_MAX_OPERATIONS = 3_000_000  # a tensor takes 30 to 40
_PROTOCOL = 2  # the one that torch.save writes, and the only one that weights_only reads


def check_pickle(data: bytes, uri: str) -> None:
    """Raises InvalidCheckpoint, with the reason, unless `data` holds only plain containers and tensors and loads in
    time and memory linear in its size."""
    walk = _Walk(len(data))
    try:
        for operation, argument, _ in pickletools.genops(data):
            walk.step(operation.name, argument)
    except InvalidCheckpoint as error:
        raise InvalidCheckpoint(error.message, uri=uri) from error
    except (ValueError, LookupError, OverflowError, Warning) as error:
        reason = str(error)[:200]
        raise InvalidCheckpoint(
            f"its pickle is damaged ({reason}); download the file again", uri=uri
        ) from error


class _Walk:
    """The unpickler's stack and memo. Numbers, texts, tuples and lists stand for themselves."""

    def __init__(self, nbytes: int) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._operations = 0
        self._budget = PickleBudget(nbytes)

    def step(self, name: str, argument: Any) -> None:
        self._operations += 1
        if self._operations > _MAX_OPERATIONS:
            refuse_pickle(f"its pickle takes more than {_MAX_OPERATIONS} steps; this is not a state dict")
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self._stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._top()
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(self._stack))
        else:
            self._apply(name, argument)

    def _apply(self, name: str, argument: Any) -> None:
        match name:
            case "GLOBAL":
                self._global(argument)
            case "EMPTY_LIST":
                self._stack.append([])
            case "EMPTY_DICT":
                self._stack.append(Dict())
            case "EMPTY_SET":
                self._stack.append(Made("set"))
            case "TUPLE":
                self._stack.append(Tuple.of(self._pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._stack.append(Tuple.of([self._pop() for _ in range(int(name[-1]))][::-1]))
            case "APPEND":
                self._extend([self._pop()])
            case "APPENDS":
                self._extend(self._pop_mark())
            case "SETITEM":
                value, key = self._pop(), self._pop()
                fill(self._top(), (key, value), self._budget)
            case "SETITEMS":
                items = self._pop_mark()
                fill(self._top(), items, self._budget)
            case "BINPERSID":
                self._stack.append(storage(self._pop()))
            case "REDUCE":
                arguments, function = self._pop(), self._pop()
                self._stack.append(call(function, arguments, self._budget))
            case "NEWOBJ":
                arguments, function = self._pop(), self._pop()
                self._stack.append(new(function, arguments, self._budget))
            case "BUILD":
                state = self._pop()
                build(self._top(), state, self._budget)
            case "LONG1":
                self._long(argument)
            case "PROTO":
                self._proto(argument)
            case "STOP":
                self._pop()
            case _:
                refuse_pickle(f"its pickle uses {name}, which weights_only does not read; {SAVE_AGAIN}")

    def _pop(self) -> Any:
        if not self._stack or (self._marks and len(self._stack) <= self._marks[-1]):
            raise IndexError("it takes more from the stack than there is")
        return self._stack.pop()

    def _pop_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _proto(self, version: int) -> None:
        if version != _PROTOCOL:
            refuse_pickle(
                f"its pickle has protocol {version}, but weights_only reads protocol 2; {SAVE_AGAIN}"
            )

    def _long(self, value: int) -> None:
        if abs(value) >= 2**63:
            refuse_pickle(f"its pickle holds an integer beyond 64 bits; {SAVE_AGAIN}")
        self._stack.append(value)

    def _global(self, name: str) -> None:
        if name in SPECIAL_NAMES_IN_FILES:
            refuse_pickle(
                f"it holds {SPECIAL_NAMES_IN_FILES[name]}, which have no plain values; {SAVE_AGAIN}"
            )
        if not is_known(name):
            refuse_pickle(
                f"its pickle asks for {name.replace(' ', '.')[:200]!r}, which weights_only does not allow as it "
                f"could run code; nothing of the file was loaded; {SAVE_AGAIN}"
            )
        self._stack.append(Name(name))

    def _extend(self, items: list[Any]) -> None:
        match self._top():
            case list(target):
                target.extend(items)
            case _:
                raise ValueError("it appends to something that is not a list")


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset({"BINFLOAT", "BININT", "BININT1", "BININT2", "BINUNICODE", "SHORT_BINSTRING"})
