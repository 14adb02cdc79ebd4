"""A model as a chain of parts, only one of which has its weights in memory at a time: what precedes the blocks, each
block, and what follows them.

transformers builds the model, without values (build.py). Its blocks are the list of modules with the most parameters.
They are replaced by modules that record what the model passes to each block besides the hidden states (masks,
positions, rotary angles): the model itself computes those from the tokens alone, so they need not be stored anywhere. A
first text is used to test this, and that each block receives exactly what the previous one returned; a model for which
it does not hold is a single part.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from arrowquant_dist.errors import InvalidConfig, shortened
from arrowquant_dist.models.build import Built
from arrowquant_dist.models.fill import Filling, Slot, zeros_in_one
from arrowquant_dist.models.placements import placements_of
from arrowquant_dist.models.progress import ModelProgress
from arrowquant_dist.models.source import LayerSource
from arrowquant_dist.models.traced import Call, Traced, evaluated, replaced
from arrowquant_dist.models.watch import Enough, Watch

_RESIDENT = 1 << 16  # values: smaller tensors outside the blocks stay in memory
Inputs = Mapping[str, torch.Tensor]


@dataclass(slots=True)
class _Passing:
    """How the stand-ins of one thread behave in a forward pass, and what they recorded.

    ends: where the forward pass is left: before the first block, at the last one, or not at all. given: hidden
    states that the last stand-in returns; None to return those it received. noise: added to the hidden states on the
    way, to see what depends on them. first: what the first block received. noted: arguments of each block, with _HIDDEN
    in the place of its hidden states. went: what the latest stand-in returned. is_chain: whether each block received
    what the previous one returned. on_last: called at the last block.
    """

    ends: Literal["first", "last", "never"] = "never"
    given: torch.Tensor | None = None
    noise: float = 0.0
    first: torch.Tensor | None = None
    noted: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    went: torch.Tensor | None = None
    is_chain: bool = True
    on_last: Callable[[], None] | None = None


class _StandIn(torch.nn.Module):
    def __init__(self, block: torch.nn.Module, index: int, chain: Chain) -> None:
        super().__init__()
        object.__setattr__(self, "_real", (block, index, chain))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_real")[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        _, index, chain = object.__getattribute__(self, "_real")
        return chain.passed(index, args, kwargs)


class Chain:
    """A model that is run part by part. Parts may be run in several threads at once; `fill`, `empty` and `put` may not.

    built: the model, which the chain alone uses. source: its weights. first: inputs to test the model with. parts:
    number of parts. slots: those of the whole model, whose indices are used everywhere.
    """

    def __init__(self, built: Built, source: LayerSource, first: Inputs) -> None:
        self._model, self._changes, self._source = built.model, built.changes, source
        self.slots = built.slots
        self.left_over = built.left_over
        self._local = threading.local()
        self._blocks: list[torch.nn.Module] = []
        self._wraps = False  # whether a block returns a tuple that starts with its hidden states
        self._of_slot: list[int] = [0] * len(self.slots)  # part of each slot; 0: outside the blocks
        self._before: set[int] = set()
        self._after: set[int] = set()
        for slot in self.slots:
            _empty(slot)
        self._find_blocks()
        self._fill(self._resident())
        if self._blocks and not self._is_chain(first):
            self._give_up_blocks()
        self._sort_outer(first)

    @property
    def parts(self) -> int:
        """The number of parts: one before the blocks, each block, and one after them; 1 if the model is not a chain."""
        return len(self._blocks) + 2 if self._blocks else 1

    @property
    def head(self) -> frozenset[int]:
        """The slot of the weight that produces logits, if the model has one."""
        try:
            module = self._model.get_output_embeddings()
        except (AttributeError, NotImplementedError):
            return frozenset()
        return frozenset(index for index, slot in enumerate(self.slots) if (module, "weight") in slot.places)

    @property
    def hidden_nbytes(self) -> int:
        """Bytes per token of the hidden states that pass from part to part."""
        config = self._model.config.get_text_config()
        return 4 * int(getattr(config, "hidden_size", 0)) if self._blocks else 0

    def slots_of(self, part: int) -> list[int]:
        """Returns the slots whose values the part needs. Slots that the first and last part share are in both."""
        if not self._blocks:
            return [*range(len(self.slots))]
        if part == 0:
            return sorted(self._before)
        if part == self.parts - 1:
            return sorted(self._after)
        return [index for index, of in enumerate(self._of_slot) if of == part]

    def fill(self, part: int) -> None:
        """Reads the part's weights from the source."""
        self._fill([self.slots[index] for index in self.slots_of(part)])

    def empty(self, part: int) -> None:
        """Frees the part's weights."""
        stay = {id(slot) for slot in self._resident()}
        for index in self.slots_of(part):
            if id(self.slots[index]) not in stay:
                _empty(self.slots[index])

    def put(self, values: Mapping[str, torch.Tensor], slots: Sequence[int]) -> None:
        """Gives layers in the filled `slots` other values. values: {stored name of a layer: values as in the
        source}."""
        with torch.no_grad():
            for index in slots:
                slot = self.slots[index]
                for placement in placements_of(slot.traced.node, slot.tensor):
                    if placement.sources and all(name in values for name in placement.sources):
                        placement.out.copy_(evaluated(placement.value, values))

    @contextmanager
    def watched(self, part: int, watch: Callable[[Mapping[int, int]], Watch]) -> Iterator[None]:
        """Watches the part while the context lasts. watch: makes a Watch of {address of a parameter's memory: slot}."""
        memory = {
            self.slots[index].tensor.untyped_storage().data_ptr(): index for index in self.slots_of(part)
        }
        with watch(memory):
            yield

    def run(self, part: int, inputs: Inputs, hidden: torch.Tensor | None) -> torch.Tensor | None:
        """Runs the part on one batch and returns the hidden states for the next part; None from the last part.

        inputs: those of the whole model, int64 [texts, tokens], without padding. hidden: what the previous part
        returned, None for the first part. Also returns None where a watch raised Enough.
        """
        with torch.no_grad():
            return self._run(part, inputs, hidden)

    def run_for_gradients(
        self, part: int, inputs: Inputs, hidden: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Runs a part of a chain of blocks as `run` does, but records what torch needs for gradients with respect to
        `hidden`; weights get no gradients."""
        for index in self.slots_of(part):
            self.slots[index].tensor.requires_grad_(False)  # noqa: FBT003
        with torch.enable_grad():
            return self._run(part, inputs, hidden)

    def _run(self, part: int, inputs: Inputs, hidden: torch.Tensor | None) -> torch.Tensor | None:
        try:
            if not self._blocks:
                self._forward(inputs, _Passing())
                return None
            if part == 0:
                return self._forward(inputs, _Passing("first")).first
            if part == self.parts - 1:
                self._forward(inputs, _Passing(given=hidden))
                return None
            return self._run_block(part, inputs, hidden)
        except Enough:
            return None

    def _run_block(self, part: int, inputs: Inputs, hidden: torch.Tensor | None) -> torch.Tensor:
        noted = self._forward(inputs, _Passing("last")).noted[part - 1]
        try:
            made = self._made_by(part - 1, noted, hidden)
        except (RuntimeError, KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            reason = shortened(" ".join(str(error).split()), 200)
            kind = type(self._model).__name__
            said = f"block {part - 1} of {kind} cannot be run by itself ({reason})"
            message = f"{said}; quantize the model with a method that needs no data"
            raise InvalidConfig(message, uri=self._source.uri) from error
        found: torch.Tensor = made[0] if isinstance(made, tuple) else made
        return found

    def _made_by(self, block: int, noted: tuple[tuple[Any, ...], dict[str, Any]], hidden: Any) -> Any:
        args, kwargs = noted
        return self._blocks[block](
            *(hidden if arg is _HIDDEN else arg for arg in args),
            **{key: hidden if arg is _HIDDEN else arg for key, arg in kwargs.items()},
        )

    def _forward(self, inputs: Inputs, passing: _Passing) -> _Passing:
        self._local.passing = passing
        with suppress(_Passed):
            self._model(**inputs)
        return passing

    def passed(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Does what a block's stand-in does when the model calls it."""
        passing: _Passing = self._local.passing
        came = args[0] if args else kwargs.get("hidden_states")
        if passing.ends == "first":
            passing.first = came
            raise _Passed
        is_next = len(passing.noted) == index and isinstance(came, torch.Tensor)
        passing.is_chain &= is_next and (passing.went is None or came is passing.went)
        named = {key: _HIDDEN if value is came else value for key, value in kwargs.items()}
        passing.noted.append((tuple(_HIDDEN if value is came else value for value in args), named))
        is_last = index == len(self._blocks) - 1
        if is_last and passing.ends == "last":
            raise _Passed
        goes = passing.given if is_last and passing.given is not None else came
        if isinstance(goes, torch.Tensor):  # a new object, to recognize it by identity
            goes = goes + passing.noise if passing.noise else goes.view(goes.shape)
        passing.went = goes
        if is_last and passing.on_last is not None:
            passing.on_last()
        return (goes,) if self._wraps else goes

    # -- what kind of model it is -------------------------------------------------------------------------------------

    def _find_blocks(self) -> None:
        lists = [module for module in self._model.modules() if isinstance(module, torch.nn.ModuleList)]
        sizes = [sum(p.numel() for p in found.parameters()) for found in lists]
        if not lists or not max(sizes):
            return
        found = lists[sizes.index(max(sizes))]
        owners: dict[int, set[int]] = {}
        for number, block in enumerate(found):
            for module in block.modules():
                owners.setdefault(id(module), set()).add(number + 1)
        for index, slot in enumerate(self.slots):
            of = {number for module, _ in slot.places for number in owners.get(id(module), {0})}
            if len(of) > 1:
                return
            self._of_slot[index] = of.pop()
        self._blocks, self._list = [*found], found
        for number, block in enumerate(self._blocks):
            found[number] = _StandIn(block, number, self)

    def _give_up_blocks(self) -> None:
        for number, block in enumerate(self._blocks):
            self._list[number] = block
        self._blocks = []
        self._of_slot = [0] * len(self.slots)

    def _is_chain(self, first: Inputs) -> bool:
        """Returns whether the blocks are called one after another, each with what the previous one returned, and none
        of their other arguments depends on it."""
        with torch.no_grad():
            for self._wraps in (False, True):
                try:
                    one = self._forward(first, _Passing())
                    hidden = self._forward(first, _Passing("first")).first
                    made = self._made_by(0, one.noted[0], hidden)
                    if isinstance(made, tuple) != self._wraps:
                        continue
                    if isinstance(made, tuple) and any(isinstance(item, torch.Tensor) for item in made[1:]):
                        return False
                    other = self._forward(first, _Passing(noise=1.0))
                except (RuntimeError, KeyError, TypeError, AttributeError, IndexError, ValueError):
                    continue  # as for a model whose blocks return the other kind of result
                is_whole = len(one.noted) == len(other.noted) == len(self._blocks)
                return is_whole and one.is_chain and other.is_chain and _same(one.noted, other.noted)
        return False

    def _sort_outer(self, first: Inputs) -> None:
        """Determines which of the slots outside the blocks are used before the blocks, and which after."""
        outer = {index for index, of in enumerate(self._of_slot) if of == 0}
        if not self._blocks:
            return
        uses = _Uses({id(self._of(index)): index for index in outer})
        with torch.no_grad(), uses:
            self._forward(first, _Passing("first"))
            self._before = {*uses.found}
            self._forward(first, _Passing(on_last=uses.found.clear))
            self._after = {*uses.found}

    def _resident(self) -> list[Slot]:
        """Returns the slots that stay in memory: small ones outside the blocks."""
        found = zip(self.slots, self._of_slot, strict=True)
        return [slot for slot, of in found if of == 0 and slot.traced.node.like.numel() <= _RESIDENT]

    def _of(self, index: int) -> Any:
        module, name = self.slots[index].places[0]
        return getattr(module, name)

    # -- weights ------------------------------------------------------------------------------------------------------

    def _fill(self, slots: Sequence[Slot]) -> None:
        filling = Filling(slots, _changes_of(slots, self._changes), self._source)
        filling.fill(ModelProgress(None, filling.nbytes))


class _Passed(Exception):
    """Leaves a forward pass when the rest of it is not needed."""


class _Uses(torch.overrides.TorchFunctionMode):
    """Records which of the tensors are used in any operation. tensors: {id: index}. found: indices of those used."""

    def __init__(self, tensors: Mapping[int, int]) -> None:
        super().__init__()
        self._tensors = tensors
        self.found: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in ("__get__", "size", "dim"):
            replaced((args, dict(kwargs)), torch.Tensor, self._note)
        return func(*args, **kwargs)

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in self._tensors:
            self.found.add(self._tensors[id(tensor)])
        return tensor


_HIDDEN = object()  # stands for the hidden states among a block's arguments


def _empty(slot: Slot) -> None:
    slot.tensor = zeros_in_one(slot.traced.node.like)
    slot.put()


def _changes_of(slots: Sequence[Slot], changes: Sequence[Call]) -> list[Call]:
    """Returns those of the model's in-place changes that affect these slots."""
    known = {id(slot.traced) for slot in slots}

    def is_known(call: Call) -> bool:
        found: list[Traced] = []
        replaced((call.args, dict(call.kwargs)), Traced, found.append)
        return any(id(t) in known or (t.step is not None and is_known(t.step)) for t in found)

    return [call for call in changes if is_known(call)]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return one is other or type(one) is type(other)
