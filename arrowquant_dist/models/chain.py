"""A model as a chain of parts, of which one at a time has its weights in memory: what is before its blocks, each block,
and what comes after.

transformers builds the model, without values (build.py). Its blocks are the list of modules that has most of the
parameters. In their place stand modules that note what the model passes to each block beside the hidden states (masks,
positions, rotary angles): the model itself makes those, from the tokens alone, so they need not be kept anywhere.
Whether they do, and whether each block takes just what the one before it gave, is tried with a first text; a model of
another kind is one single part.
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
    """What the stand-ins of one thread do, and what they met.

    ends: where the forward is left: before the first block, behind the last one, or nowhere. given: hidden states that
    come out of the last one; None for those that went in. noise: what is added to them on the way, to see what depends
    on it. first: what the first block was given. noted: arguments of each block, with _HIDDEN for its hidden states.
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
    """parts: how many there are. slots: of the whole model, whose indices are used everywhere. Safe to run in several
    threads; `fill`, `empty` and `put` are for one at a time.

    built: of which the chain is the only user. first: inputs that the model is tried with.
    """

    def __init__(self, built: Built, source: LayerSource, first: Inputs) -> None:
        self._model, self._changes, self._source = built.model, built.changes, source
        self.slots = built.slots
        self.left_over = built.left_over
        self._local = threading.local()
        self._blocks: list[torch.nn.Module] = []
        self._wraps = False  # whether a block gives a tuple, with its hidden states first
        self._of_slot: list[int] = [0] * len(self.slots)  # 0: outside the blocks
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
        """What is before the blocks, each of them, and what is behind; one for a model that is no chain."""
        return len(self._blocks) + 2 if self._blocks else 1

    @property
    def head(self) -> frozenset[int]:
        """The slot of the weight that makes logits, where the model has one."""
        try:
            module = self._model.get_output_embeddings()
        except (AttributeError, NotImplementedError):
            return frozenset()
        return frozenset(index for index, slot in enumerate(self.slots) if (module, "weight") in slot.places)

    @property
    def hidden_nbytes(self) -> int:
        """Of what goes from part to part, for each token."""
        config = self._model.config.get_text_config()
        return 4 * int(getattr(config, "hidden_size", 0)) if self._blocks else 0

    def slots_of(self, part: int) -> list[int]:
        """Indices of the slots whose values the part needs. Those that the ends share are in both."""
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
        """Lets go of them."""
        stay = {id(slot) for slot in self._resident()}
        for index in self.slots_of(part):
            if id(self.slots[index]) not in stay:
                _empty(self.slots[index])

    def put(self, values: Mapping[str, torch.Tensor], slots: Sequence[int]) -> None:
        """Other values for layers in slots that are filled. values: {stored name of a layer: as the source has it}."""
        with torch.no_grad():
            for index in slots:
                slot = self.slots[index]
                for placement in placements_of(slot.traced.node, slot.tensor):
                    if placement.sources and all(name in values for name in placement.sources):
                        placement.out.copy_(evaluated(placement.value, values))

    @contextmanager
    def watched(self, part: int, watch: Callable[[Mapping[int, int]], Watch]) -> Iterator[None]:
        """watch: makes one of {address of a parameter's memory: its slot}."""
        memory = {
            self.slots[index].tensor.untyped_storage().data_ptr(): index for index in self.slots_of(part)
        }
        with watch(memory):
            yield

    def run(self, part: int, inputs: Inputs, hidden: torch.Tensor | None) -> torch.Tensor | None:
        """What the part makes of one batch: hidden states for the next one; None of the last part.

        inputs: of the whole model, int64 [texts, tokens], without padding. hidden: what the part before made, None for
        the first. Returns None too where a watch had enough.
        """
        with torch.no_grad():
            return self._run(part, inputs, hidden)

    def run_for_gradients(
        self, part: int, inputs: Inputs, hidden: torch.Tensor | None
    ) -> torch.Tensor | None:
        """As `run`, of a chain of blocks, with what torch needs to know of how it was made; of weights it makes no
        gradients."""
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
            message = f"block {part - 1} of {kind} does not run alone ({reason}); quantize it by a method without data"
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
        """What a block's stand-in does when the model calls it."""
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
        if isinstance(goes, torch.Tensor):  # another object, to know it by
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
        """Whether blocks are called one after the other, each with what the one before gave, and nothing else that they
        are passed depends on that."""
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
                    continue  # as of a model whose blocks give the other of the two
                is_whole = len(one.noted) == len(other.noted) == len(self._blocks)
                return is_whole and one.is_chain and other.is_chain and _same(one.noted, other.noted)
        return False

    def _sort_outer(self, first: Inputs) -> None:
        """Which of the slots outside the blocks are used before these, and which after."""
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
        """What is outside the blocks and small stays in memory."""
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
    """Leaves a forward of which nothing more is needed."""


class _Uses(torch.overrides.TorchFunctionMode):
    """found: which of the tensors take part in anything. tensors: {id: index}."""

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


_HIDDEN = object()  # in the place of the hidden states among a block's arguments


def _empty(slot: Slot) -> None:
    slot.tensor = zeros_in_one(slot.traced.node.like)
    slot.put()


def _changes_of(slots: Sequence[Slot], changes: Sequence[Call]) -> list[Call]:
    """Those of the model's that are made to these slots."""
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
