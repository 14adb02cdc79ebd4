"""Options that several commands have: who does the work."""

from __future__ import annotations

from typing import Annotated

import typer

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
