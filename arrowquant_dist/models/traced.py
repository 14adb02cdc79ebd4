"""Tensors without values that record how they are made from the layers of a dataset.

transformers moves a checkpoint's tensors into a model by operations of its own: experts are merged, q, k and v split,
prefixes renamed. Given traced tensors instead of weights, it does all of that without reading a byte, and afterwards it
is known what each parameter consists of: weights can then be read in the order in which they are stored, straight to
their places, and codes can stay codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """A layer of the dataset. like: a tensor of its shape and dtype on the meta device. differs: whether another layer,
    given by its name, has different values. changes: in-place changes to tensors of the whole model."""

    name: str
    like: torch.Tensor
    differs: Callable[[str], bool]
    changes: list[Call]


@dataclass(frozen=True, slots=True, eq=False)
class Derived:
    """A result of `function(*args, **kwargs)`, in which nodes stand for tensors.

    number: which of several results it is; None if there is one. like: a tensor of its shape, strides and dtype on the
    meta device.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    number: int | None
    like: torch.Tensor

    @property
    def name(self) -> str:
        return str(getattr(self.function, "__name__", ""))

    @property
    def inputs(self) -> list[Node]:
        found: list[Node] = []
        replaced((self.args, dict(self.kwargs)), Node, found.append)
        return found


Node = Origin | Derived


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call of `function` in which traced tensors stand for the real tensors of the filled model.

    number: which of several results is meant; None if there is one.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    number: int | None = None


class UntraceableOperation(TypeError):
    """Raised for an operation that would need the values of a traced tensor, or change them in place."""


class Traced(torch.Tensor):
    """A tensor with a shape, a dtype and a device, and instead of values a node that says what they would be.

    It is a real tensor over a single value in memory, so that torch and transformers accept it as one; but operations
    on it are recorded instead, as documented in torch's "Extending torch with a Tensor-like type".
    """

    node: Node
    step: Call | None  # how it was made from other traced tensors

    @classmethod
    def of(cls, node: Node, step: Call | None = None) -> Traced:
        like = node.like
        memory = torch.zeros((), dtype=torch.uint8).new_empty((), dtype=like.dtype)
        found = memory.expand(like.shape).as_subclass(cls)
        found.node, found.step = node, step
        return found

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__") and func.__self__.__name__ in _PROPERTIES:
            return _property(func.__self__.__name__, *args)
        if name in _OF_ITSELF:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        if name in _SAME_VALUES or (name == "__getitem__" and args[1] is Ellipsis):
            return cls.of(args[0].node, Call(func, args, kwargs))
        if name == "to":
            return _to(args[0], args[1:], kwargs)
        if name == "equal":
            return all(isinstance(a, Traced) for a in args) and are_equal(args[0].node, args[1].node)
        if name in _IN_PLACE or (name.endswith("_") and not name.endswith("__")):
            return _change(func, args, kwargs)
        return _record(func, args, kwargs)


_OF_ITSELF = {
    "__get__",
    "__set__",
    "requires_grad_",
    "data_ptr",
    "__repr__",
    "__hash__",
    "untyped_storage",
    "__reduce_ex__",
    "is_shared",
}
_IN_PLACE = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"}
_SAME_VALUES = {"detach", "cpu", "alias"}
_PROPERTIES = {"data", "T", "mT", "H", "mH", "real", "imag"}


def are_equal(first: Node, second: Node) -> bool:
    """Returns whether two nodes stand for the same values: made in the same way from the same or equal layers."""
    if first.like.shape != second.like.shape or first.like.dtype != second.like.dtype:
        return False
    if isinstance(first, Origin) and isinstance(second, Origin):
        return first.name == second.name or not first.differs(second.name)
    if isinstance(first, Origin) or isinstance(second, Origin) or _way(first) != _way(second):
        return False
    return all(are_equal(one, other) for one, other in zip(first.inputs, second.inputs, strict=True))


def _way(node: Derived) -> str:
    """Returns how a node is made, regardless of its sources. With tensors that have values, no two ways are the
    same."""
    tensors: list[torch.Tensor] = []
    replaced((node.args, dict(node.kwargs)), torch.Tensor, tensors.append)
    if tensors:
        return f"{id(node)}"
    return repr((node.name, replaced((node.args, dict(node.kwargs)), Node, lambda _: "tensor"), node.number))


def replaced(value: Any, kind: Any, change: Callable[[Any], Any]) -> Any:
    """Returns `value` with `change` applied to every `kind` in it, however deep in tuples, lists and dicts."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple | list):
        items = [replaced(item, kind, change) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {key: replaced(item, kind, change) for key, item in value.items()}
    return value


def sources_of(node: Node) -> Iterator[str]:
    """Yields the names of the layers that a node is made from, possibly repeatedly."""
    if isinstance(node, Origin):
        yield node.name
    else:
        for inner in node.inputs:
            yield from sources_of(inner)


def _origins(node: Node) -> Iterator[Origin]:
    if isinstance(node, Origin):
        yield node
    else:
        for inner in node.inputs:
            yield from _origins(inner)


def make_changes(changes: Sequence[Call], tensors: Mapping[int, torch.Tensor]) -> None:
    """Makes to real tensors the changes that were made to traced ones in place, in the same order: transformers zeroes
    the padding row of some embeddings after loading them.

    tensors: {id of a traced tensor: the real one}. Raises UntraceableOperation if a tensor was changed before it was
    put into the model, since that change is lost.
    """

    def real(traced: Traced) -> Any:
        if id(traced) in tensors:
            return tensors[id(traced)]
        if traced.step is None:
            raise UntraceableOperation("a weight is changed in place while it is converted")
        return done(traced.step)

    def done(step: Call) -> Any:
        args, kwargs = replaced((step.args, dict(step.kwargs)), Traced, real)
        result = step.function(*args, **kwargs)
        return result if step.number is None else result[step.number]

    with torch.no_grad():
        for change in changes:
            done(change)


def changed_in_place(changes: Sequence[Call]) -> set[int]:
    """Returns the ids of all traced tensors that the changes involve, directly or because they are viewed."""
    found: set[int] = set()

    def note_call(call: Call) -> None:
        replaced((call.args, dict(call.kwargs)), Traced, note)

    def note(traced: Traced) -> None:
        found.add(id(traced))
        if traced.step is not None:
            note_call(traced.step)

    for change in changes:
        note_call(change)
    return found


def evaluated(node: Node, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Computes what the node stands for. values: those of its layers. Intermediate results are freed once used."""
    if isinstance(node, Origin):
        return values[node.name]
    args, kwargs = replaced((node.args, dict(node.kwargs)), Node, lambda inner: evaluated(inner, values))
    result = node.function(*args, **kwargs)
    tensor: torch.Tensor = result if node.number is None else result[node.number]
    return tensor


def _property(attribute: str, tensor: Traced, *value: Any) -> Any:
    """Reads a property that is a tensor, or sets `data`."""
    if attribute != "data":
        return _record(getattr, (tensor, attribute), {})
    if not value:
        return Traced.of(tensor.node, Call(getattr, (tensor, attribute), {}))
    if not isinstance(value[0], Traced) or value[0].shape != tensor.shape:
        raise UntraceableOperation("a traced tensor is given other values")
    tensor.node = value[0].node
    return None


def _to(tensor: Traced, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Traced:
    """Records only the dtype: it is not yet known where the values will be."""
    given = [*args, *kwargs.values()]
    dtypes = [value for value in given if isinstance(value, torch.dtype)]
    dtypes += [value.dtype for value in given if isinstance(value, torch.Tensor)]
    if not dtypes or dtypes[0] == tensor.node.like.dtype:
        return tensor
    return _record(torch.Tensor.to, (tensor, dtypes[0]), {})  # type: ignore[no-any-return]


def _change(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Records an in-place change, which `make_changes` repeats on the model's own tensor once it has its values."""
    traced: list[Traced] = []
    replaced((args, dict(kwargs)), Traced, traced.append)
    origin = next((node for node in _origins(traced[0].node)), None)
    if origin is None or "out" in kwargs:
        raise UntraceableOperation(f"{getattr(func, '__name__', func)} would change a traced tensor in place")
    origin.changes.append(Call(func, args, kwargs))
    return traced[0]


def _like(value: Node | torch.Tensor) -> torch.Tensor:
    """Returns a tensor of the same shape and dtype on the meta device."""
    return value.to("meta") if isinstance(value, torch.Tensor) else value.like


def _record(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    given, named = replaced((args, dict(kwargs)), Traced, lambda traced: traced.node)
    on_meta, named_on_meta = replaced((given, named), (Origin, Derived, torch.Tensor), _like)
    result = func(*on_meta, **named_on_meta)
    if isinstance(result, torch.Tensor):
        return Traced.of(Derived(func, given, named, None, result), Call(func, args, kwargs))
    if isinstance(result, tuple | list) and any(isinstance(item, torch.Tensor) for item in result):
        return tuple(
            Traced.of(Derived(func, given, named, number, item), Call(func, args, kwargs, number))
            for number, item in enumerate(result)
        )
    return result
