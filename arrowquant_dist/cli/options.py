"""Arguments and options that several commands have: what is read, by whom it is worked on, how the end is told."""

from __future__ import annotations

from typing import Annotated

import typer

from arrowquant_dist.cli.telling import LogFormat

EngineOption = Annotated[
    str | None,
    typer.Option(
        help="inline: threads of this process. ray: actors of Ray. auto, the default: ray where there is an address.",
        metavar="auto|inline|ray",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="A Ray cluster, as HOST:6379; default: the environment's RAY_ADDRESS.", metavar="ADDRESS"
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option(help="How many workers; default: as many as there are CPUs.", metavar="N")
]
OriginalArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="What the dataset was made of: a folder, a URL, minilm.")
]
FinishedArgument = Annotated[str, typer.Argument(metavar="TARGET", help="A finished dataset of it.")]
ColumnOption = Annotated[
    str | None,
    typer.Option(help="Key or column of the texts in .jsonl and .parquet; default: text.", metavar="NAME"),
]
StorageConfigOption = Annotated[
    str | None,
    typer.Option(help="YAML file whose run section says how to reach the storage.", metavar="FILE"),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress on stderr; results and errors alone.")
]
LogFormatOption = Annotated[
    LogFormat,
    typer.Option(help="Of progress and errors on stderr; json: a document a line.", metavar="text|json"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else.")]
