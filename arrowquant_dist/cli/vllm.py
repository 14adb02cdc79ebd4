"""`arrowquant vllm`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from arrowquant_dist.cli.options import JsonOption, StorageConfigOption
from arrowquant_dist.cli.outcome import outcome, print_json


def vllm(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A finished dataset. Its weights stay where they are.")
    ],
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="A new local directory for the small files.")
    ],
    *,
    activations: Annotated[
        str | None,
        typer.Option(help="Quantize activations to int8 as well when the model runs (W8A8).", metavar="int8"),
    ] = None,
    decoded: Annotated[
        bool, typer.Option("--decoded", help="Decode the weights: the model runs in 16 bits.")
    ] = False,
    config: StorageConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a folder from which vLLM serves a dataset.

    Then: vllm serve FOLDER --load-format arrowquant
    """
    with outcome(as_json=as_json):
        from arrowquant_dist.config import RunConfig, load_config
        from arrowquant_dist.config.checks import check_choice, invalid
        from arrowquant_dist.plugins.vllm.folder import ServedAsCodes, ServedDecoded, write_model_folder

        if activations is not None:
            check_choice("activations", activations, ("int8",))
            if decoded:
                raise invalid("decoded", "cannot be combined with activations: they are not quantized then")
        run = load_config(config)[1] if config is not None else RunConfig()
        served = ServedDecoded() if decoded else ServedAsCodes(activations)
        written = write_model_folder(target, folder, served, run)
        if as_json:
            print_json({"folder": written.folder, "files": written.files, "notes": written.notes})
            return
        from arrowquant_dist.report.terminal import print_command, print_text

        for note in written.notes:
            print_text(sys.stdout, f"note: {note}")
        print_text(sys.stdout, f"written to {written.folder}")
        command = ["vllm", "serve", written.folder, "--load-format", "arrowquant"]
        print_command(sys.stdout, "serve it", command)
