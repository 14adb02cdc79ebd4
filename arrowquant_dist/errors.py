"""All errors of the package in one tree, grouped by what a handler would do about them.

Every error has a stable `kind`, keyword fields that say where (`layer=`, `uri=`, `byte_range=`), a message that
ends with a next step, and an `exit_code` for the command line: 2 for bad input or usage, 130 for a run that was
interrupted, 1 for one that failed.

Messages stay short however many layers are wrong: `listed` names five and counts the others, `shortened` takes the
middle out of long names, which may come from strangers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

LISTED = 5  # maximum number of names that an error lists
NAME_CHARS = 120  # maximum length of a name
MESSAGE_CHARS = 2_000  # maximum length of a whole message
# The message for Ctrl-C and SIGTERM, whatever they stopped that can be resumed.
RESUMES = "interrupted; what is finished is kept, run the same command again to resume"
_MARK_CHARS = 32  # room for the note that replaces the characters left out


def shortened(text: str, longest: int = NAME_CHARS) -> str:
    """`text`; if it is longer than `longest` characters, its beginning, the total length, and its end."""
    if len(text) <= longest:
        return text
    half = (longest - _MARK_CHARS) // 2
    return f"{text[:half]}…({len(text) - 2 * half} characters)…{text[-half:]}"


def listed(names: Iterable[object]) -> str:
    """The first five of `names`, each shortened, and how many more there are: "a, b, c, d, e and 7 more"."""
    every = [*names]
    more = f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
    return ", ".join(shortened(str(name)) for name in every[:LISTED]) + more


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 layer`, `2 layers`. plural: the plural of the noun where it is not the noun with an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"


def are(count: int) -> str:
    """`is` for one, `are` for other counts."""
    return "is" if count == 1 else "are"


def were(count: int) -> str:
    """`was` for one, `were` for other counts."""
    return "was" if count == 1 else "were"


def have(count: int) -> str:
    """`has` for one, `have` for other counts."""
    return "has" if count == 1 else "have"


class ArrowQuantError(Exception):
    """The root of all errors that this package raises on purpose.

    message: what is wrong and what to do, shortened to MESSAGE_CHARS.
    layer: the layer's full name, as in the dataset or source; it is shortened when shown.
    uri: the object or place that the error is about.
    byte_range: the bytes in that object, the first and the one after the last.
    kind: a stable word for the kind of error.
    exit_code: exit code of a command that ends with this error.

    layer, uri and byte_range are None where they do not apply.
    """

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        layer: str | None = None,
        uri: str | None = None,
        byte_range: tuple[int, int] | None = None,
    ) -> None:
        message = shortened(message, MESSAGE_CHARS)
        super().__init__(message)
        self.message = message
        self.layer = layer
        self.uri = uri
        self.byte_range = byte_range

    @property
    def place(self) -> str:
        """Layer, object and bytes, for people; "" where the error names none of them."""
        where = [f"layer {shortened(self.layer)!r}"] if self.layer is not None else []
        where += [shortened(self.uri, MESSAGE_CHARS)] if self.uri is not None else []
        where += ["bytes {}-{}".format(*self.byte_range)] if self.byte_range is not None else []
        return ", ".join(where)

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.layer, self.uri, self.byte_range)

    def to_dict(self) -> dict[str, Any]:
        """Kind, message and place as plain values, for `--json`."""
        return {
            "kind": self.kind,
            "message": str(self),
            "layer_name": self.layer,
            "uri": self.uri,
            "byte_range": list(self.byte_range) if self.byte_range is not None else None,
        }


def _rebuild(
    cls: type[ArrowQuantError],
    message: str,
    layer: str | None,
    uri: str | None,
    byte_range: tuple[int, int] | None,
) -> ArrowQuantError:
    return cls(message, layer=layer, uri=uri, byte_range=byte_range)


class InvalidConfig(ArrowQuantError):
    """The configuration or the command line asks for something impossible. Change it and run again."""

    kind = "invalid-config"
    exit_code = 2


class NotFound(ArrowQuantError):
    """Nothing is at this URI. Check the spelling and the credentials."""

    kind = "not-found"
    exit_code = 2


class InvalidCheckpoint(ArrowQuantError):
    """The source is damaged or of a form that is not supported. Fetch it again or convert it."""

    kind = "invalid-checkpoint"
    exit_code = 2


class SourceChanged(InvalidCheckpoint):
    """A file of the source is not the one that the run was planned with. Put it back, or start anew."""

    kind = "source-changed"


class UnquantizableWeights(ArrowQuantError):
    """The weights hold values that no scale can represent (NaN, inf). Repair them or keep the layer unquantized."""

    kind = "unquantizable-weights"
    exit_code = 2


class TargetConflict(ArrowQuantError):
    """The target holds something else. Choose another target, or use `--overwrite`."""

    kind = "target-conflict"
    exit_code = 2


class MissingDependency(ArrowQuantError):
    """An optional package is not installed."""

    kind = "missing-dependency"
    exit_code = 2


class CorruptWeights(ArrowQuantError):
    """Stored bytes are not what was written. Reading them again may help; using them never does."""

    kind = "corrupt-weights"


class IncompleteDataset(ArrowQuantError):
    """Parts or layers are missing. Run the same `quantize` command again to complete it."""

    kind = "incomplete-dataset"


class PartialRun(ArrowQuantError):
    """Some shards failed; finished ones are kept. Run the same command again to resume."""

    kind = "partial-run"


class Interrupted(ArrowQuantError):
    """The run was stopped from outside. Run the same command again to resume."""

    kind = "interrupted"
    exit_code = 130  # as for any program that Ctrl-C ends: 128 and SIGINT's number


class StorageError(ArrowQuantError):
    """Reading or writing failed (disk full, permissions, network). What was finished is kept."""

    kind = "storage"


class CutObject(StorageError):
    """An object ends before the requested bytes: it was truncated, or a shorter one is in its place."""

    kind = "cut-object"


class AccessDenied(StorageError):
    """The credentials are wrong, or lack a permission. Give others, or have the permission granted."""

    kind = "access-denied"
    exit_code = 2


class NoRegularFile(StorageError):
    """A folder, a FIFO or a dangling link is where a file belongs. Put the file there, or remove what is there."""

    kind = "no-regular-file"
    exit_code = 2


class MemoryBudgetExceeded(ArrowQuantError):
    """One piece needs more memory than the budget allows. Raise `memory_budget` or read by rows."""

    kind = "memory-budget"


class UnknownLayer(ArrowQuantError, KeyError):
    """There is no layer of that name; the message has the nearest names."""

    kind = "unknown-layer"
    exit_code = 2


class ModelMismatch(ArrowQuantError):
    """The module's parameters are not the dataset's layers. Load into the model it came from, or `strict=False`."""

    kind = "model-mismatch"
    exit_code = 2
