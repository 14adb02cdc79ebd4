"""Two examples of each command, shown at the end of its --help. They use `minilm`, so that anybody can run them."""

from __future__ import annotations

import shlex
from typing import Any

import typer

from arrowquant_dist.report.text import folded_command

EXIT_CODES = "Exit code 0: done; 1: failed; 2: bad input or usage; 130: interrupted."
EXAMPLES = {
    "": (
        "arrowquant quantize minilm out/int8",
        "arrowquant report out/int8",
    ),
    "quantize": (
        "arrowquant quantize minilm out/int8",
        "arrowquant quantize minilm out/int4 --config int4 --dry-run",
    ),
    "inspect": (
        "arrowquant inspect minilm",
        "arrowquant inspect out/int8 --filter '*.query.*' --sort stored --limit 5",
    ),
    "verify": (
        "arrowquant verify out/int8",
        "arrowquant verify out/int8 --quiet --json",
    ),
    "report": (
        "arrowquant report out/int8",
        "arrowquant report out/int8 --html report.html",
    ),
    "calibrate": (
        "arrowquant calibrate minilm out/statistics --texts builtin",
        "arrowquant calibrate minilm out/int4-statistics --texts builtin --quantize int4-gptq",
    ),
    "evaluate": (
        "arrowquant evaluate minilm out/int8 --texts builtin:held-back",
        "arrowquant evaluate minilm out/int8 --texts builtin --json",
    ),
    "distill": (
        "arrowquant distill minilm out/int8 out/trained --texts builtin --steps 20",
        "arrowquant distill minilm out/int8 out/quick --texts builtin --minutes 0.5",
    ),
    "validate": (
        "arrowquant validate minilm out/validation",
        "arrowquant validate minilm out/of-int8 --configs int8 int4 --html page.html",
    ),
    "export": (
        "arrowquant export out/int8 out/safetensors --format safetensors",
        "arrowquant export out/int8 out/tensors --format compressed-tensors --requantize --dry-run",
    ),
    "vllm": (
        "arrowquant vllm out/int8 out/served --decoded",
        "arrowquant vllm out/int8 out/served-too --decoded --json",
    ),
    "config": (
        "arrowquant config show int4",
        "arrowquant config check int4 --json",
    ),
    "config list": (
        "arrowquant config list",
        "arrowquant config list --json",
    ),
    "config show": (
        "arrowquant config show int4",
        "arrowquant config show int8 --json",
    ),
    "config check": (
        "arrowquant config check int4",
        "arrowquant config check int4 --json",
    ),
}
_MARGIN = 2  # columns that typer leaves free on the right of a help text


class Command(typer.core.TyperCommand):
    """A command whose help ends with its examples, and whose usage line has `SOURCE TARGET` instead of
    `{SOURCE} {TARGET}`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_end(ctx, formatter)


class Group(typer.core.TyperGroup):
    """A group of commands whose help ends with examples."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_end(ctx, formatter)


def _write_end(ctx: Any, formatter: Any) -> None:
    """Writes the examples of the command, each folded as a shell reads it, and the exit codes."""
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text("Examples:")
        indent = " " * (formatter.current_indent + 2)
        for example in EXAMPLES[ctx.command_path.partition(" ")[2]]:
            room = formatter.width + _MARGIN - len(indent)
            lines = folded_command(shlex.split(example), room)
            formatter.write("".join(f"{indent}{line}\n" for line in lines))
        formatter.write_paragraph()
        formatter.write_text(EXIT_CODES)
