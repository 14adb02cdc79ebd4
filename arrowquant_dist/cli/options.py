"""Options that several commands have: who does the work."""

from __future__ import annotations

from typing import Annotated

import typer

EngineOption = Annotated[str | None, typer.Option(help="Who runs the workers.", metavar="auto|inline|ray")]
AddressOption = Annotated[str | None, typer.Option(help="Address of a Ray cluster.")]
WorkersOption = Annotated[
    int | None, typer.Option(help="How many workers; default: as many as CPUs.", metavar="N")
]
