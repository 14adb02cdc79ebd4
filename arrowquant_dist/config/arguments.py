"""Settings given by name in Python: an unknown name raises an InvalidConfig with the nearest known one."""

from __future__ import annotations

from dataclasses import MISSING, fields
from functools import wraps
from typing import Any, TypeVar

from arrowquant_dist.config.checks import check_keys, invalid, shown
from arrowquant_dist.errors import InvalidConfig, counted

T = TypeVar("T")


def known_arguments(cls: type[T]) -> type[T]:
    """Decorates a dataclass: unknown, missing and repeated arguments raise InvalidConfig, where Python raises
    TypeError."""
    make: Any = cls.__init__
    known = fields(cls)  # type: ignore[arg-type]
    names = [field.name for field in known]
    needed = [f.name for f in known if f.default is MISSING and f.default_factory is MISSING]

    @wraps(make)
    def checked(self: T, *values: Any, **named: Any) -> None:
        if len(values) > len(names):
            message = (
                f"{cls.__name__} takes {counted(len(names), 'value')}, not {len(values)}; pass them by name"
            )
            raise InvalidConfig(message)
        check_keys(named, names, {})
        placed = dict(zip(names, values, strict=False))
        for name in named:
            if name in placed:
                raise invalid(name, "is given twice, by position and by name; leave one of them out")
        for name in needed:
            if name not in placed and name not in named:
                raise invalid(name, f"is missing; {cls.__name__} needs it")
        make(self, *values, **named)

    cls.__init__ = checked  # type: ignore[assignment, method-assign]
    return cls


def check_made(key: str, value: Any, cls: type) -> None:
    """Raises InvalidConfig, which says how to make one, unless `value` is an object of the settings class `cls`."""
    if isinstance(value, cls):
        return
    if isinstance(value, type):
        hint = f"pass an instance: {cls.__name__}()"
    elif isinstance(value, dict):
        how = ".from_dict(…)" if hasattr(cls, "from_dict") else "(**…)"
        hint = f"convert it with {cls.__name__}{how}"
    elif isinstance(value, str):
        hint = f"pass {cls.__name__}(…), such as {cls.__name__}({fields(cls)[0].name}={value[:20]!r})"
    else:
        hint = f"pass {cls.__name__}(…)"
    article = "an" if cls.__name__[0] in "AEIOU" else "a"
    raise invalid(key, f"must be {article} {cls.__name__}, not {shown(value)}; {hint}")
