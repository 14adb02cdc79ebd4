"""Compiles regular expressions in the syntax of Python's `re` to programs of `linear_regex`.

Supported are literals, classes, groups, alternatives, repetitions (lazy ones too), `^`, `$`, `\\b` and lookaheads:
all that the configs of quantized models use. What a matcher without backtracking cannot support is refused:
references to groups, lookbehinds, atomic groups, possessive repetitions; so are flags, lookaheads in lookaheads, and
`$` before the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

MAX_INSTRUCTIONS = 1000
_MAX_DEPTH = 50
_COUNTS = re.compile(r"\{(\d{0,4})(,?)(\d{0,4})\}")
_GROUP_NAME = re.compile(r"P<[A-Za-z_]\w*>")
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}

Test = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a program. kind: what it does. next, other: where to continue; `look` continues at next if
    what begins at other follows (or, if negated, does not follow), `boundary` if a word begins or ends here (or, if
    negated, does not). test: of a `char`."""

    kind: Literal["char", "split", "look", "start", "boundary", "end", "match"]
    next: int = -1
    other: int = -1
    test: Test | None = None
    negated: bool = False


def is_word(char: str) -> bool:
    """Whether the character matches `\\w`."""
    return char.isalnum() or char == "_"


_CLASSES: dict[str, Test] = {"d": str.isdecimal, "w": is_word, "s": str.isspace}
# Maps the place of the continuation to that of the part's first instruction: parts are assembled from the end.
_Part = Callable[[int], int]


def compile_program(pattern: str) -> tuple[list[Instruction], int]:
    """The instructions, and the index of the first one. Raises ValueError, with the reason, if the pattern is
    unsupported or invalid."""
    parser = _Parser(pattern)
    whole = parser.alternatives(0, looking=False)
    if parser.rest:
        parser.refuse("has a ) without a (")
    return parser.program, whole(_MATCH)


_MATCH, _END = 0, 1


class _Parser:
    """A recursive descent parser. rest: what has not been read yet."""

    def __init__(self, pattern: str) -> None:
        self.rest = pattern
        self.program = [Instruction("match"), Instruction("end")]

    def alternatives(self, depth: int, *, looking: bool) -> _Part:
        """looking: whether this is inside a lookahead."""
        if depth > _MAX_DEPTH:
            self.refuse(f"is nested more than {_MAX_DEPTH} deep")
        parts = [self._sequence(depth, looking=looking)]
        while self._take("|"):
            parts.append(self._sequence(depth, looking=looking))

        def alternatives(after: int) -> int:
            place = parts[-1](after)
            for part in reversed(parts[:-1]):
                place = self._add(Instruction("split", part(after), place))
            return place

        return alternatives

    def refuse(self, reason: str) -> NoReturn:
        raise ValueError(reason)

    def _sequence(self, depth: int, *, looking: bool) -> _Part:
        parts: list[_Part] = []
        while self.rest and self.rest[0] not in "|)":
            parts.append(self._repeated(self._atom(depth, looking=looking)))

        def sequence(after: int) -> int:
            for part in reversed(parts):
                after = part(after)
            return after

        return sequence

    def _repeated(self, part: _Part) -> _Part:
        counts = self._counts()
        if counts is None:
            return part
        lowest, highest = counts
        self._take("?")  # lazy: makes no difference, since it does not matter which match is found first
        if self.rest[:1] in ("*", "+", "?") or self._counts() is not None:
            self.refuse("repeats a repetition, or is possessive")

        def repeated(after: int) -> int:
            place = after
            if highest is None:
                place = self._add(Instruction("split"))
                self.program[place] = Instruction("split", part(place), after)
            for _ in range((highest or lowest) - lowest):
                place = self._add(Instruction("split", part(place), after))
            for _ in range(lowest):
                place = part(place)
            return place

        return repeated

    def _counts(self) -> tuple[int, int | None] | None:
        """The lowest and highest number of repetitions, the latter None for no limit; None if no repetition follows."""
        for sign, counts in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return counts
        found = _COUNTS.match(self.rest)
        if found is None or not (found[1] or found[2]):
            return None  # as in `re`, other braces are literal
        self.rest = self.rest[found.end() :]
        lowest = int(found[1] or 0)
        highest = int(found[3]) if found[3] else None if found[2] else lowest
        if highest is not None and highest < lowest:
            self.refuse("has a repetition whose highest count is below its lowest")
        return lowest, highest

    def _atom(self, depth: int, *, looking: bool) -> _Part:
        char, self.rest = self.rest[0], self.rest[1:]
        if char == "(":
            return self._group(depth, looking=looking)
        if char == "[":
            return self._char(self._class())
        if char == ".":
            return self._char(lambda given: given != "\n")
        if char == "^":
            return self._simple(Instruction("start"))
        if char == "$":
            return self._at_end(newline=True)
        if char == "\\":
            return self._escaped(looking=looking)
        if char in "*+?":
            self.refuse(f"has a {char} with nothing to repeat")
        return self._char(char.__eq__)

    def _group(self, depth: int, *, looking: bool) -> _Part:
        negated = self.rest.startswith("?!")
        if negated or self.rest.startswith("?="):
            self.rest = self.rest[2:]
            if looking:
                self.refuse("has a lookahead in a lookahead")
            return self._look(self._inner(depth, looking=True), negated=negated)
        if self._take("?"):
            named = _GROUP_NAME.match(self.rest)
            if not self._take(":"):
                if named is None:
                    self.refuse(f"has a group of an unknown kind, (?{self.rest[:2]}")
                self.rest = self.rest[named.end() :]
        return self._inner(depth, looking=looking)

    def _inner(self, depth: int, *, looking: bool) -> _Part:
        part = self.alternatives(depth + 1, looking=looking)
        if not self._take(")"):
            self.refuse("has a ( without a )")
        return part

    def _look(self, part: _Part, *, negated: bool) -> _Part:
        return lambda after: self._add(Instruction("look", after, part(_MATCH), negated=negated))

    def _escaped(self, *, looking: bool) -> _Part:
        if not self.rest:
            self.refuse("ends with a backslash")
        char = self.rest[0]
        if char == "A":
            self.rest = self.rest[1:]
            return self._simple(Instruction("start"))
        if char == "Z":
            self.rest = self.rest[1:]
            return self._at_end(newline=False)
        if char in "bB":
            self.rest = self.rest[1:]
            if looking:
                self.refuse("has a word boundary in a lookahead")
            return self._simple(Instruction("boundary", negated=char == "B"))
        return self._char(self._escape())

    def _escape(self) -> Test:
        """The test for one escaped character; the backslash is read already."""
        char, self.rest = self.rest[:1], self.rest[1:]
        if char.lower() in _CLASSES:
            test = _CLASSES[char.lower()]
            return test if char.islower() else lambda given: not test(given)
        if char.isalnum() and char not in _CONTROLS:
            self.refuse(f"has \\{char}, which is not known")
        return _CONTROLS.get(char, char).__eq__

    def _class(self) -> Test:
        negated = self._take("^")
        tests: list[Test] = []
        while not tests or not self._take("]"):  # a ] in the first place is literal
            if not self.rest and not tests:
                self.refuse("has a [ without a ]")
            low = self._class_item()
            if isinstance(low, str) and self.rest[:1] == "-" and self.rest[1:2] not in ("", "]"):
                self.rest = self.rest[1:]
                high = self._class_item()
                if not isinstance(high, str) or high < low:
                    self.refuse("has an invalid range of characters")
                tests.append(_between(low, high))
            else:
                tests.append(low.__eq__ if isinstance(low, str) else low)
        return lambda given: any(test(given) for test in tests) != negated

    def _class_item(self) -> str | Test:
        """A character, or a class of characters."""
        if not self.rest:
            self.refuse("has a [ without a ]")
        char, self.rest = self.rest[0], self.rest[1:]
        if char != "\\":
            return char
        if self.rest[:1].isalpha():
            return "\b" if self._take("b") else self._escape()
        if not self.rest or self.rest[0].isdigit():
            self.refuse("has a number after a backslash, which is not known")
        char, self.rest = self.rest[0], self.rest[1:]
        return char

    def _at_end(self, *, newline: bool) -> _Part:
        def at_end(after: int) -> int:
            if after != _MATCH:
                self.refuse("has a $ before its end")
            if not newline:
                return _END
            return self._add(
                Instruction("split", self._add(Instruction("char", _END, test="\n".__eq__)), _END)
            )

        return at_end

    def _char(self, test: Test) -> _Part:
        return self._simple(Instruction("char", test=test))

    def _simple(self, instruction: Instruction) -> _Part:
        return lambda after: self._add(replace(instruction, next=after))

    def _add(self, instruction: Instruction) -> int:
        if len(self.program) >= MAX_INSTRUCTIONS:
            self.refuse("is too large, or repeats too much")
        self.program.append(instruction)
        return len(self.program) - 1

    def _take(self, text: str) -> bool:
        taken = self.rest.startswith(text)
        if taken:
            self.rest = self.rest[len(text) :]
        return taken


def _between(low: str, high: str) -> Test:
    return lambda given: low <= given <= high
