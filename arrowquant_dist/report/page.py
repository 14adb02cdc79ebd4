"""Reports as self-contained HTML pages: no scripts, nothing loaded, everything escaped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrowquant_dist.errors import counted
from arrowquant_dist.reduce.figures import Report
from arrowquant_dist.report import charts, text, view
from arrowquant_dist.report.compare import comparison
from arrowquant_dist.report.evaluated import evaluation_table
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.text import LayerName, printable

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"


def report_page(report: Report, evaluations: Sequence[Evaluation] = ()) -> str:
    """One report as a page. evaluations: of its dataset."""
    template = _environment().get_template("report.html.j2")
    return template.render(
        note=view.WEIGHT_COSINE_NOTE,
        essentials=view.essentials(report),
        evaluations=[evaluation_table(one) for one in evaluations],
        tables=view.tables(report)[1:],
        cosine_chart=charts.cosine_distribution(report) if report.accuracy is not None else None,
        size_chart=charts.size_by_layer_type(report),
        kept_groups=view.kept_groups(report),
        notes=report.notes,
        config_lines=view.config_lines(report),
    )


def comparison_page(
    reports: Sequence[tuple[str, Report]], evaluations: Sequence[Sequence[Evaluation]] = ()
) -> str:
    """Several reports side by side; each with the name it goes by. evaluations: those of each dataset."""
    template = _environment().get_template("compare.html.j2")
    return template.render(note=view.WEIGHT_COSINE_NOTE, table=comparison(reports, evaluations))


@cache
def _environment() -> Environment:
    """One for all pages of a process, since it keeps the compiled templates: to compile them takes 30 ms a page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters.update(params=text.params, counted=counted)
    environment.tests["layer_name"] = lambda value: isinstance(value, LayerName)
    return environment


def _finalize(value: Any) -> Any:
    """No control character gets onto the page. What is Markup already came through here."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
