"""Arguments and options that several commands share: for inputs, engine and workers, progress and output."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from arrowquant_dist.cli.telling import LogFormat


def complete_preset(incomplete: str) -> list[str]:
    """Names of presets that begin with `incomplete`, for completion in a shell."""
    from arrowquant_dist.config import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


def complete_from(words: Iterable[str]) -> Callable[[str], list[str]]:
    """A completion that gives those of `words` that begin with what was typed."""
    every = tuple(words)

    def complete(incomplete: str) -> list[str]:
        return [word for word in every if word.startswith(incomplete)]

    return complete


EngineOption = Annotated[
    str | None,
    typer.Option(
        help="inline: threads of this process. ray: Ray actors. auto (default): ray if there is an address, else "
        "inline.",
        metavar="auto|inline|ray",
        autocompletion=complete_from(("auto", "inline", "ray")),
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(help="Ray cluster, as HOST:6379; default: $RAY_ADDRESS.", metavar="ADDRESS"),
]
WorkersOption = Annotated[
    int | None, typer.Option(help="Number of workers; default: the number of CPUs.", metavar="N")
]
OriginalArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="The model that the dataset was made from: a folder, a URL, or minilm."
    ),
]
FinishedArgument = Annotated[str, typer.Argument(metavar="TARGET", help="A finished dataset of that model.")]
ColumnOption = Annotated[
    str | None,
    typer.Option(
        help="Key or column with the texts in .jsonl and .parquet files; default: text.", metavar="NAME"
    ),
]
StorageConfigOption = Annotated[
    str | None,
    typer.Option(help="YAML file whose run section has the storage options.", metavar="FILE"),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress on stderr, only errors.")]
LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        help="Format of progress and errors on stderr. json: one document per line.", metavar="text|json"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
