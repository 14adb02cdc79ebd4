"""`arrowquant quantize`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arrowquant_dist.cli.options import (
    AddressOption,
    EngineOption,
    LogFormatOption,
    QuietOption,
    WorkersOption,
    complete_from,
    complete_preset,
)
from arrowquant_dist.cli.outcome import STOPPED, outcome, print_json
from arrowquant_dist.cli.telling import LogFormat, Telling
from arrowquant_dist.errors import RESUMES, counted, listed, were
from arrowquant_dist.method_names import METHODS

if TYPE_CHECKING:
    from arrowquant_dist.config import QuantizationConfig, RunConfig
    from arrowquant_dist.driver import Outcome

_NOTE_LINES = 2  # notes on a terminal: a run ends with at most twelve lines; all notes are in the report
_QUANT_TYPES = ("int8", "int4", "int3", "int2", "fp16")
# One scale per row, the default of configs, is a trap with so few bits: in int4, the worst layer of MiniLM then has a
# cosine of 0.906 with its weights; with a scale and a zero point for each 128 values it is 0.978.
_COARSE_BY_ROW = ("int4", "int3", "int2")


def quantize(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A checkpoint: a directory, a file, a URL, or `minilm`.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Where the dataset goes: a directory or a URL.")
    ],
    *,
    config: Annotated[
        str | None,
        typer.Option(
            help="A preset (`arrowquant config list`) or a YAML file. The options below override it.",
            metavar="NAME|FILE",
            autocompletion=complete_preset,
        ),
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option(
            help="Type of the codes; default: int8. int4, int3 and int2, without options for scales, mean groups of "
            "128 with zero points.",
            metavar="|".join(_QUANT_TYPES),
            autocompletion=complete_from(_QUANT_TYPES),
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="rtn: round to nearest, the default for int8. mse: least squared error, the default for fewer bits. "
            "gptq: least error of the layers' outputs, needs --hessians. size and counted: for configs that --size "
            "chose.",
            metavar="|".join(METHODS),
            autocompletion=complete_from(METHODS),
        ),
    ] = None,
    hessians: Annotated[
        str | None,
        typer.Option(
            help="Statistics that `calibrate` wrote: a directory or a URL. The default method is gptq then.",
            metavar="URI",
        ),
    ] = None,
    per_channel: Annotated[
        bool | None,
        typer.Option(
            "--per-channel/--per-group",
            help="One scale for each row (default), or one for each group of values in a row.",
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            help="Values that share a scale; default: 128. 0: the whole layer. Implies --per-group.",
            metavar="N",
        ),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option("--symmetric/--asymmetric", help="Without zero points (default), or with them."),
    ] = None,
    keep_codes: Annotated[
        bool,
        typer.Option(
            "--keep-codes",
            help="Keep the codes of a source that is already quantized. Its other layers are kept as well, unless "
            "--quant or a config says how to store them.",
        ),
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(
            help="Total size of the part files, in bytes or in bits per weight: 5.5MB, 2.0bits. How to store each "
            "layer is then chosen for you.",
            metavar="SIZE",
        ),
    ] = None,
    min_quality: Annotated[
        str | None,
        typer.Option(
            help="Choose the smallest size with at least this mean weight cosine, such as 0.98. With --texts: at least "
            "this mean embedding cosine or, for causal models, at most this increase in perplexity, such as 5%.",
            metavar="QUALITY",
        ),
    ] = None,
    texts: Annotated[
        str | None,
        typer.Option(
            help="Texts to measure --min-quality with: a file, a URL, or builtin, as for `evaluate`.",
            metavar="FILE",
        ),
    ] = None,
    engine: EngineOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the plan: layers, stored bytes, shards already done. Writes nothing."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a dataset, or what an unfinished run left.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Make only the damaged parts of a finished dataset again."),
    ] = False,
    quiet: QuietOption = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report (or plan) as JSON, and nothing else.")
    ] = False,
) -> None:
    """Quantize a checkpoint into a dataset.

    The same command again resumes an interrupted run.
    """
    telling = Telling(quiet, log_format)
    with outcome(as_json=as_json, if_interrupted=STOPPED if dry_run else RESUMES, telling=telling):
        if group_size is not None and per_channel is None:
            per_channel = False
        if hessians is not None and method is None and config is None and size is None:
            method = "gptq"
        is_alone = config is None and per_channel is None and group_size is None and symmetric is None
        if is_alone and quant in _COARSE_BY_ROW:
            per_channel, group_size, symmetric = False, 128, False
        # These options replace the file's values as it is read: other defaults depend on them, and a file whose method
        # needs hessians is not valid without them.
        first = {"keep_codes": keep_codes or None, "hessians": hessians}
        first |= {"size": size, "min_quality": min_quality, "texts": texts}
        quantization, run = _configs(
            config, {name: value for name, value in first.items() if value is not None}
        )
        quantization = quantization.replace(
            quant_type=quant,
            method=method,
            per_channel=per_channel,
            group_size=group_size,
            symmetric=symmetric,
        )
        run = run.replace(
            engine=engine,
            address=address,
            workers=workers,
            overwrite=overwrite or None,
            repair=repair or None,
        )
        if quantization.texts is not None:
            quantization = _by_texts(source, target, quantization, run, telling)
        if dry_run:
            _show_plan(source, target, quantization, run, as_json=as_json)
        else:
            done = _run(source, target, quantization, run, telling)
            if as_json:
                _print_outcome(done)
            else:
                _show_outcome(done, source, target)


def _configs(config: str | None, instead: Mapping[str, Any]) -> tuple[QuantizationConfig, RunConfig]:
    from arrowquant_dist.config import QuantizationConfig, RunConfig, load_config

    if config is None:
        return QuantizationConfig(**instead), RunConfig()
    return load_config(config, instead=instead)


def _by_texts(
    source: str, target: str, config: QuantizationConfig, run: RunConfig, telling: Telling
) -> QuantizationConfig:
    """The config to quantize with: the smallest size found whose outputs for the texts have the quality asked for."""
    from arrowquant_dist.evaluation import choose_by_texts

    with redirect_stdout(sys.stderr):  # what libraries print; stdout is for the result alone
        from arrowquant_dist.progress.steps import shown_steps

        with shown_steps(sys.stderr, "quantize", telling.form(sys.stderr)) as show:
            return choose_by_texts(source, config, run, target, progress=show)


def _run(source: str, target: str, config: QuantizationConfig, run: RunConfig, telling: Telling) -> Outcome:
    from arrowquant_dist.checkpoint.collector import collector_paused
    from arrowquant_dist.cli.startup import skip_unused_imports

    with collector_paused():  # modules are never freed: searching them for cycles takes a tenth of the import
        skip_unused_imports()
        from arrowquant_dist import driver
        from arrowquant_dist.engine.log import shown_shards

    # Ray prints warnings of its nodes to stdout; stdout is for the report alone.
    told = nullcontext() if telling.quiet else shown_shards(sys.stderr)
    with told, redirect_stdout(sys.stderr):
        from arrowquant_dist.progress.runs import shown_progress

        with shown_progress(sys.stderr, "quantize", telling.form(sys.stderr)) as show:
            return driver.quantize_tracked(source, target, config, run, show)


def _print_outcome(result: Outcome) -> None:
    done: dict[str, Any] = {"target": result.target, "already_finished": result.already_finished}
    if result.damaged is not None:
        done["damaged"] = list(result.damaged)
    print_json({**done, "report": result.report.to_dict()})


def _show_outcome(result: Outcome, source: str, target: str) -> None:
    """Prints the result and the next commands. source, target: as they were given, for these commands; they are
    printed without credentials."""
    from arrowquant_dist.report.ending import ending
    from arrowquant_dist.report.terminal import print_command, print_notes, print_table
    from arrowquant_dist.storage.uris import redact

    source, target = redact(source), redact(target)
    print_table(sys.stdout, ending(_title(result, target), result.report, target))
    print_notes(sys.stdout, result.report.notes, _NOTE_LINES)
    print_command(sys.stdout, "full report", ["arrowquant", "report", target])
    if result.has_model:
        command = ["arrowquant", "evaluate", source, target, "--texts", "builtin:held-back"]
        print_command(sys.stdout, "next, compare the outputs", command)


def _title(result: Outcome, target: str) -> str:
    if result.damaged is not None:
        return f"{target}: {_repaired(result.damaged)}"
    if result.already_finished:
        return f"{target} is finished already"
    return f"written to {target}"


def _repaired(damaged: Sequence[str]) -> str:
    if not damaged:
        return "every object holds what was written; there is nothing to repair"
    found = counted(len(damaged), "damaged object")
    return f"{found} {were(len(damaged))} made again ({listed(damaged)}); all others are unchanged"


def _show_plan(
    source: str, target: str, config: QuantizationConfig, run: RunConfig, *, as_json: bool
) -> None:
    from arrowquant_dist import driver
    from arrowquant_dist.plan import summarize

    found = driver.preview(source, target, config, run)
    summary = summarize(found.plan, target, run, found.sizes, found.there)
    if as_json:
        print_json(summary.to_dict())
        return
    from arrowquant_dist.report.planned import plan_tables
    from arrowquant_dist.report.terminal import print_table, print_text

    for table in plan_tables(summary):
        print_table(sys.stdout, table)
    for note in summary.notes:
        print_text(sys.stdout, f"note: {note}")
