"""What a pickle of torch.save's may create and call, with which arguments, and how much work that may be in total.

The stand-ins for objects are created here too: numbers, texts, tuples and lists stand for themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from arrowquant_dist.checkpoint.torch_private import NAMES_IN_FILES
from arrowquant_dist.errors import InvalidCheckpoint

SAVE_AGAIN = "save `model.state_dict()` with torch.save, or convert the file to safetensors"
# Minimum pickle bytes per tensor; its name, storage key, shape and strides take about twice as many.
_TENSOR_NBYTES = 24
_FREE_TENSORS = 100
_WORK_PER_BYTE, _FREE_WORK = 4, 10_000
# Hashes of tuples can be forged, and n equal hashes in a dict take n² steps.
_MAX_TUPLE_KEYS, _MAX_TUPLE_KEY = 1000, 16
_MAX_TUPLE_VALUES = 10_000
_MAX_DIMS = 64
_MAX_WORD = 64  # characters of a device or a layout
_STORAGE = re.compile(r"torch(\.cuda)? \w+Storage|torch\.storage (Unt|T)ypedStorage")
_DTYPE = re.compile(r"torch (b?float|complex|u?int|bool|qu?int)\w*")


@dataclass(frozen=True, slots=True)
class Name:
    """A class, function or dtype, as `module name`."""

    text: str


class Tuple(tuple[Any, ...]):
    """A tuple. values: number of values visited when walking through it recursively; nested tuples can have 2^n."""

    values = 1

    @classmethod
    def of(cls, items: Sequence[Any]) -> Tuple:
        made = cls(items)
        made.values = 1 + sum(item.values if isinstance(item, Tuple) else 1 for item in items)
        if made.values > _MAX_TUPLE_VALUES:
            refuse_pickle(
                f"its pickle has a tuple of over {_MAX_TUPLE_VALUES} values; this is not a state dict"
            )
        return made


class Dict:
    """A dict of any kind; only its size matters."""

    __slots__ = ("size",)

    def __init__(self, size: int = 0) -> None:
        self.size = size


class Ordered(Dict):
    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Made:
    """Any other object. kind: `tensor`, `storage`, `set` …"""

    kind: str


TENSOR, STORAGE = Made("tensor"), Made("storage")


class PickleBudget:
    """The total work that a pickle may cause: a small multiple of its size. Raises InvalidCheckpoint beyond that."""

    def __init__(self, nbytes: int) -> None:
        self._work = _FREE_WORK + _WORK_PER_BYTE * nbytes
        self._tensors = _FREE_TENSORS + nbytes // _TENSOR_NBYTES
        self._tuple_keys = _MAX_TUPLE_KEYS

    def spend(self, work: int) -> None:
        """Counts values and characters that are copied or hashed."""
        self._work -= work
        if self._work < 0:
            refuse_pickle("its pickle copies or repeats more than it holds; this is not a state dict")

    def tensor(self) -> Made:
        self._tensors -= 1
        if self._tensors < 0:
            refuse_pickle("its pickle makes more tensors than it can describe; this is not a state dict")
        return TENSOR

    def key(self, key: Any) -> None:
        """Checks a value that becomes a key of a dict or an element of a set."""
        if isinstance(key, tuple):
            self._tuple_keys -= 1
            plain = len(key) <= _MAX_TUPLE_KEY and all(_is_plain_key(inner) for inner in key)
            if self._tuple_keys < 0 or not plain:
                refuse_pickle(
                    "its pickle has dicts with many or large tuples as keys; this is not a state dict"
                )
        elif not _is_plain_key(key):
            refuse_pickle(
                "its pickle has a dict key or set element that is neither text nor number; this is not a state dict"
            )


def refuse_pickle(message: str) -> NoReturn:
    raise InvalidCheckpoint(message)


def fill(target: Any, items: Sequence[Any], budget: PickleBudget) -> None:
    """Puts key, value, key, value … into a dict."""
    if not isinstance(target, Dict) or len(items) % 2:
        raise ValueError("it sets items of something that is not a dict")
    for key in items[::2]:
        budget.key(key)
    target.size += len(items) // 2


def call(function: Any, arguments: Any, budget: PickleBudget) -> Any:
    """The stand-in for the result of calling a function with these arguments."""
    name = function.text if isinstance(function, Name) else ""
    made = _CALLS[name](budget, arguments) if name in _CALLS and isinstance(arguments, tuple) else None
    if made is None:
        shown = name.replace(" ", ".") or "something that is not a function"
        refuse_pickle(
            f"its pickle calls {shown} in a way that torch.save never does; nothing was loaded; {SAVE_AGAIN}"
        )
    return made


def new(kind: Any, arguments: Any, budget: PickleBudget) -> Any:
    """The same for a class that is instantiated by itself."""
    name = kind.text if isinstance(kind, Name) else ""
    if name != _PARAMETER and (name not in _MADE_EMPTY or arguments != ()):
        refuse_pickle(f"its pickle creates objects in a way that torch.save never does; {SAVE_AGAIN}")
    return call(kind, arguments, budget)


def build(made: Any, state: Any, budget: PickleBudget) -> None:
    """Checks the attributes of an ordered dict (a module's `_metadata`), or of a tensor in torch's oldest form."""
    if isinstance(made, Name):
        return  # weights_only refuses this immediately
    if isinstance(made, Ordered) and isinstance(state, Dict):
        budget.spend(state.size)
    elif made is not TENSOR or not isinstance(state, tuple) or not _is_legacy_state(state):
        refuse_pickle(f"its pickle sets an object's state in a way that torch.save never does; {SAVE_AGAIN}")


def storage(described: Any) -> Made:
    """The stand-in for a persistent id."""
    match described:
        case ("storage", Name(text=kind), str(), str(), int(count)) if (
            _STORAGE.fullmatch(kind) and count >= 0
        ):
            return STORAGE
        case _:
            raise ValueError("it asks for an object that is not a tensor's storage")


def is_known(name: str) -> bool:
    """Whether this is an allowed function, class, storage class (`torch FloatStorage`) or dtype (`torch bfloat16`)."""
    patterns = (_STORAGE, _DTYPE)
    return name in _CALLS or name in _CLASSES or any(pattern.fullmatch(name) for pattern in patterns)


def _ordered_dict(budget: PickleBudget, arguments: tuple[Any, ...]) -> Any:
    """Made without arguments or, as Python 2 wrote it, from a list of pairs."""
    match arguments:
        case ():
            return Ordered()
        case ([*pairs],) if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            budget.spend(len(pairs))
            made = Ordered()
            fill(made, [value for pair in pairs for value in pair], budget)
            return made
    return None


def _counter(budget: PickleBudget, arguments: tuple[Any, ...]) -> Any:
    match arguments:
        case ():
            return Dict()
        case (Dict(size=size),):
            budget.spend(size)
            return Dict(size)
    return None


def _set(budget: PickleBudget, arguments: tuple[Any, ...]) -> Any:
    match arguments:
        case ():
            return Made("set")
        case ([*values],):
            budget.spend(len(values))
            for value in values:
                budget.key(value)
            return Made("set")
    return None


def _size(budget: PickleBudget, arguments: tuple[Any, ...]) -> Any:
    match arguments:
        case (tuple(sizes),) if _are_counts(sizes):
            budget.spend(len(sizes))
            return sizes
    return None


def _bytes(budget: PickleBudget, arguments: tuple[Any, ...]) -> Any:
    """The form in which protocol 2 writes bytes: one character per byte."""
    match arguments:
        case (str(text), "latin1"):
            budget.spend(len(text))
            return Made("bytes")
    return None


def _words(_: PickleBudget, arguments: tuple[Any, ...]) -> Any:
    """A device or a layout: short texts and numbers."""
    plain = all(
        isinstance(value, int) or (isinstance(value, str) and len(value) <= _MAX_WORD) for value in arguments
    )
    return Made("word") if plain and 1 <= len(arguments) <= 2 else None


def _complex(_: PickleBudget, arguments: tuple[Any, ...]) -> Any:
    match arguments:
        case (int() | float(), int() | float()):
            return Made("complex")
    return None


def _tensor(budget: PickleBudget, arguments: tuple[Any, ...]) -> Any:
    """Storage, offset, sizes and strides, followed by what the function's version adds to them."""
    match arguments:
        case (Made(kind="storage"), int(offset), tuple(sizes), tuple(strides), *rest):
            if (
                0 <= offset < 2**63
                and _are_counts(sizes)
                and _are_counts(strides)
                and _are_extras(budget, rest)
            ):
                return budget.tensor()
    return None


def _parameter(budget: PickleBudget, arguments: tuple[Any, ...]) -> Any:
    """Tensor, requires_grad, hooks, state; for the class itself: tensor, requires_grad."""
    match arguments:
        case (Made(kind="tensor"), *rest) if _are_extras(budget, rest):
            return budget.tensor()
    return None


def _typed_tensor(budget: PickleBudget, arguments: tuple[Any, ...]) -> Any:
    """A tensor of a class, with attributes: function, class, arguments of the function, state."""
    match arguments:
        case (Name(text=function), Name(text=kind), tuple(inner), state) if kind in _CLASSES:
            if function in _REBUILT and _are_extras(budget, [state]):
                return call(Name(function), inner, budget)
    return None


def _are_extras(budget: PickleBudget, values: Sequence[Any]) -> bool:
    """Whether these are valid arguments after a tensor's place: flags, hooks, a dtype, attributes."""
    budget.spend(sum(value.size for value in values if isinstance(value, Dict)))
    return len(values) <= 4 and all(_is_extra(value) for value in values)


def _is_extra(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) <= 2 and all(inner is None or isinstance(inner, Dict) for inner in value)
    return value is None or isinstance(value, bool | Dict) or _is_dtype(value)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, Name) and _DTYPE.fullmatch(value.text) is not None


def _are_counts(values: tuple[Any, ...]) -> bool:
    return len(values) <= _MAX_DIMS and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _is_legacy_state(state: tuple[Any, ...]) -> bool:
    """Whether this is the state of a tensor in the first releases of torch: storage, offset, sizes, strides."""
    match state:
        case (Made(kind="storage"), int(), tuple(sizes), tuple(strides)):
            return _are_counts(sizes) and _are_counts(strides)
    return False


def _is_plain_key(key: Any) -> bool:
    return key is None or isinstance(key, str | int | float) or _is_dtype(key)


_PARAMETER = "torch.nn.parameter Parameter"
_CLASSES = frozenset({_PARAMETER, "torch Tensor"})
_Check = Callable[
    [PickleBudget, tuple[Any, ...]], Any
]  # arguments → the stand-in for the result; None: these arguments are not allowed
# What state dicts consist of: the part of weights_only's list that we can store, with the arguments allowed for each.
_REBUILT: dict[str, _Check] = {
    name: _parameter if "_parameter" in name else _tensor
    for name in NAMES_IN_FILES
    if name.startswith("torch._utils ")
}
_MADE_EMPTY: dict[str, _Check] = {
    "collections OrderedDict": _ordered_dict,
    "collections Counter": _counter,
    "builtins set": _set,
    "__builtin__ set": _set,
}
_CALLS: dict[str, _Check] = {
    **_REBUILT,
    **_MADE_EMPTY,
    _PARAMETER: _parameter,
    "torch._tensor _rebuild_from_type_v2": _typed_tensor,
    "torch.serialization _get_layout": _words,
    "torch device": _words,
    "torch Size": _size,
    "_codecs encode": _bytes,
    "builtins complex": _complex,
    "__builtin__ complex": _complex,
}
