"""Matches regular expressions from strangers in time linear in the text: no pattern can make it explode.

Python's `re` tries one path after the other, and `(a+)+$` has 2^n of them. Here all paths are followed at once: a
state describes what may come next, as a set of places in the pattern's program, each with the lookaheads that still
have to match, or must not. States and the transitions between them are cached, so most characters of most names cost
one dict lookup. google's re2 does the same but has no lookaheads, which targets like `^(?!.*(lm_head|gate)).*` need,
and it would be another dependency.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from arrowquant_dist.checkpoint.quantized.regex_syntax import Instruction, compile_program, is_word
from arrowquant_dist.errors import InvalidCheckpoint

_MAX_WORK = 2_000_000  # steps of one pattern over all texts, which take seconds
_MAX_KEPT = 20_000  # cached transitions between states

Places = frozenset[int]


@dataclass(frozen=True, slots=True)
class _Thread:
    """One possible path. place: the instruction that takes the next character. wanted: lookaheads that must match,
    each as a set of places of which at least one has to reach its end. unwanted: places none of which may."""

    place: int
    wanted: frozenset[Places] = frozenset()
    unwanted: Places = frozenset()


_State = frozenset[_Thread]
_MATCH, _END = 0, 1
_ACCEPTED: _State = frozenset({_Thread(_MATCH)})


class LinearRegex:
    """A pattern. Raises ValueError if `regex_syntax` does not support it."""

    def __init__(self, pattern: str) -> None:
        self._program, first = compile_program(pattern)
        self._pattern, self._work = pattern, _MAX_WORK
        self._steps: dict[tuple[_State, str], _State] = {}
        self._first = self._reached(first, "", is_first=True)

    def begins(self, text: str) -> bool:
        """Whether `text` begins with a match, as with `re.match`. Raises InvalidCheckpoint if the pattern takes too
        much work."""
        state = self._first
        for char in text:
            if state is _ACCEPTED or not state:
                break
            key = (state, char)
            following = self._steps.get(key)
            if following is None:
                following = self._step(state, char)
                if len(self._steps) >= _MAX_KEPT:
                    self._steps.clear()
                self._steps[key] = following
            state = following
        return any(_is_final(thread) for thread in state)

    def _step(self, state: _State, char: str) -> _State:
        threads: set[_Thread] = set()
        for thread in state:
            unwanted = self._after(thread.unwanted, char)
            wanted = frozenset(self._after(places, char) for places in thread.wanted)
            if _MATCH in unwanted or frozenset() in wanted:
                continue
            wanted = frozenset(places for places in wanted if _MATCH not in places)
            for following in self._main_after(thread.place, char):
                threads.add(
                    _Thread(following.place, wanted | following.wanted, unwanted | following.unwanted)
                )
        if _Thread(_MATCH) in threads:
            return _ACCEPTED
        return frozenset(threads)

    def _main_after(self, place: int, char: str) -> _State:
        if place == _MATCH:
            return _ACCEPTED
        instruction = self._program[place]
        if instruction.test is None or not instruction.test(char):
            return frozenset()
        return self._reached(instruction.next, char, is_first=False)

    def _after(self, places: Places, char: str) -> Places:
        """The places of a lookahead after the character."""
        following: set[int] = set()
        for place in places:
            instruction = self._program[place]
            if place == _MATCH:
                following.add(_MATCH)
            elif instruction.test is not None and instruction.test(char):
                following |= self._reached_in_look(instruction.next, is_first=False)
        self._spend(len(places) + len(following))
        return frozenset(following)

    def _reached(self, first: int, before: str, *, is_first: bool) -> _State:
        """The threads at `first`, and at all that is reachable without taking a character. before: the last one."""
        threads: set[_Thread] = set()
        seen: set[_Thread] = set()
        todo = [_Thread(first)]
        while todo:
            thread = todo.pop()
            if thread in seen:
                continue
            seen.add(thread)
            self._spend(1)
            instruction = self._program[thread.place]
            if instruction.kind in ("char", "end", "match"):
                threads.add(thread)
            elif instruction.kind == "look":
                todo += self._looking(thread, instruction, is_first=is_first)
            elif instruction.kind == "boundary":
                todo.append(self._at_boundary(thread, instruction, before))
            elif instruction.kind != "start" or is_first:
                todo.append(_Thread(instruction.next, thread.wanted, thread.unwanted))
                if instruction.kind == "split":
                    todo.append(_Thread(instruction.other, thread.wanted, thread.unwanted))
        return _ACCEPTED if _Thread(_MATCH) in threads else frozenset(threads)

    def _looking(self, thread: _Thread, instruction: Instruction, *, is_first: bool) -> list[_Thread]:
        places = self._reached_in_look(instruction.other, is_first=is_first)
        if _MATCH in places:
            return [] if instruction.negated else [_Thread(instruction.next, thread.wanted, thread.unwanted)]
        if instruction.negated:
            return [_Thread(instruction.next, thread.wanted, thread.unwanted | places)]
        return [_Thread(instruction.next, thread.wanted | {places}, thread.unwanted)]

    def _at_boundary(self, thread: _Thread, instruction: Instruction, before: str) -> _Thread:
        """A word begins or ends here if exactly one of the characters before and after is a word character: a
        lookahead for one character."""
        word = self._word()
        wants_word = is_word(before) if before else False
        if wants_word == instruction.negated:
            return _Thread(instruction.next, thread.wanted | {frozenset({word})}, thread.unwanted)
        return _Thread(instruction.next, thread.wanted, thread.unwanted | {word})

    def _word(self) -> int:
        """The place of an instruction that takes a word character and ends there; the pattern's own instructions
        would continue."""
        last = self._program[-1]
        if last.test is not is_word or last.next != _MATCH:
            self._program.append(Instruction("char", _MATCH, test=is_word))
        return len(self._program) - 1

    def _reached_in_look(self, first: int, *, is_first: bool) -> Places:
        reached: set[int] = set()
        seen: set[int] = set()
        todo = [first]
        while todo:
            place = todo.pop()
            if place in seen:
                continue
            seen.add(place)
            self._spend(1)
            instruction = self._program[place]
            if instruction.kind in ("char", "end", "match"):
                reached.add(place)
            elif instruction.kind != "start" or is_first:
                todo.append(instruction.next)
                if instruction.kind == "split":
                    todo.append(instruction.other)
        return frozenset(reached)

    def _spend(self, work: int) -> None:
        self._work -= work
        if self._work < 0:
            message = f"the regex {self._pattern[:100]!r} of its config takes too long; write a simpler one"
            raise InvalidCheckpoint(message)


def _is_final(thread: _Thread) -> bool:
    """Whether a match can end at the end of the text."""
    return (
        thread.place in (_MATCH, _END)
        and not (thread.unwanted & {_MATCH, _END})
        and all(places & {_MATCH, _END} for places in thread.wanted)
    )


def begins(pattern: str, text: str) -> bool:
    """Whether `text` begins with a match of `pattern`. Raises ValueError, with the reason, if it is unsupported."""
    return _regex(pattern).begins(text)


def occurs(pattern: str, text: str) -> bool:
    """Whether a match is anywhere in `text`; otherwise like `begins`."""
    _regex(pattern)  # compiled alone first, since unbalanced brackets might close those around it
    return _regex(f"[\\s\\S]*(?:{pattern})").begins(text)


@lru_cache(maxsize=1024)
def _regex(pattern: str) -> LinearRegex:
    """The compiled pattern, cached with the transitions found for earlier texts."""
    return LinearRegex(pattern)
