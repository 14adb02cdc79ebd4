"""Reports as GitHub-flavoured Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from arrowquant_dist.errors import counted
from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.report import text, view
from arrowquant_dist.report.document import Document
from arrowquant_dist.report.text import LayerName, printable
from arrowquant_dist.report.view import KeptByReason, Table

_PLAIN_NAME = re.compile(r"[\w./:+ -]+", re.ASCII)
_SPECIAL = re.compile(r"([\\`*_\[\]|~#!])")


def report_markdown(report: ReportFigures) -> str:
    """The whole report as Markdown, ending with a newline."""
    blocks = ["# Quantization report", f"> **{escaped(view.WEIGHT_COSINE_NOTE)}**"]
    for table in view.tables(report):
        blocks += [f"## {escaped(table.title)}", table_markdown(table)]
    blocks += _kept(view.kept_groups(report))
    if report.notes:
        blocks += ["## Notes", "\n".join(f"- {escaped(note)}" for note in report.notes)]
    blocks += ["## Configuration", code_block(view.config_lines(report))]
    return "\n\n".join(blocks) + "\n"


def document_markdown(document: Document) -> str:
    """Any other report as Markdown, without what only pages show. Ends with a newline."""
    blocks = [f"# {escaped(document.title)}", escaped(document.lead)]
    for part in document.shown_parts:
        blocks += [f"## {escaped(part.title)}", *map(escaped, part.said)]
        for table in part.shown_tables:
            blocks += [f"### {escaped(table.title)}"] if table.title != part.title else []
            blocks.append(table_markdown(table))
        if part.notes:
            blocks.append("\n".join(f"- **{escaped(name)}**: {escaped(text)}" for name, text in part.notes))
    return "\n\n".join(blocks) + "\n"


def table_markdown(table: Table) -> str:
    rules = ["---:" if side == "r" else "---" for side in table.align]
    lines = [map(cell, table.headers), rules, *(map(cell, row) for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: str) -> str:
    return name(value) if isinstance(value, LayerName) else escaped(value)


def name(value: str) -> str:
    """A layer's name as code. Special characters become character references, which Markdown does not act on."""
    shown = printable(value)
    if _PLAIN_NAME.fullmatch(shown):
        return f"`{shown}`"
    inert = "".join(c if c.isalnum() and c.isascii() else f"&#{ord(c)};" for c in shown)
    return f"<code>{inert}</code>"


def escaped(value: str) -> str:
    """Text escaped so that Markdown and HTML show it as it is."""
    inert = printable(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", inert)


def code_block(lines: Sequence[str]) -> str:
    """Lines as an indented code block, which nothing in the lines can end."""
    return "\n".join(f"    {printable(line)}" for line in lines)


def _kept(groups: Sequence[KeptByReason]) -> list[str]:
    if not groups:
        return []
    blocks = ["## Layers that are not quantized"]
    for group in groups:
        count = f"{counted(len(group.layers), 'layer')}, {text.params(group.params)} params"
        names = ", ".join(map(name, group.named))
        more = f" and {group.unnamed} more (in layers.parquet)" if group.unnamed else ""
        blocks.append(f"**{escaped(group.reason)}**: {count}: {names}{more}")
    return blocks
