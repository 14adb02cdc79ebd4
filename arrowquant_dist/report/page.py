"""Reports as self-contained HTML pages: nothing loaded, everything escaped, no script but the package's own.

The page's policy allows that script and the style by their hashes. So nothing else runs, even if some name got past the
escaping.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrowquant_dist.errors import StorageError, counted
from arrowquant_dist.reduce.figures import ReportFigures
from arrowquant_dist.report import text, view
from arrowquant_dist.report.cards import cards
from arrowquant_dist.report.compare import sections
from arrowquant_dist.report.compared import Compared
from arrowquant_dist.report.differences import differing_layers
from arrowquant_dist.report.document import Document
from arrowquant_dist.report.evaluated import evaluation_table
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.layer_rows import LayerRow
from arrowquant_dist.report.layer_table import LAYER_COLUMNS, LAYER_MEANINGS, layer_data
from arrowquant_dist.report.pictures import noise, sizes
from arrowquant_dist.report.pictures.heatmap import heat_map
from arrowquant_dist.report.pictures.memory import memory_over_time
from arrowquant_dist.report.pictures.outputs import errors_of_outputs
from arrowquant_dist.report.pictures.timeline import shards_over_time, why_untimed
from arrowquant_dist.report.text import LayerName, Verdict, printable
from arrowquant_dist.report.tradeoffs import tradeoffs

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"


def report_page(
    report: ReportFigures, evaluations: Sequence[Evaluation] = (), layers: Sequence[LayerRow] | None = None
) -> str:
    """The page of one report. evaluations: evaluations of its dataset. layers: figures of all its layers; None if they
    are not known."""
    from markupsafe import Markup

    rows = layers or ()
    pictures = (
        errors_of_outputs(report, evaluations),
        noise.by_depth(rows),
        heat_map(rows),
        noise.by_bits(rows),
        noise.histogram(rows),
        sizes.size_by_layer_type(report),
        shards_over_time(report),
        memory_over_time(report),
    )
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            note=view.WEIGHT_COSINE_NOTE,
            lead=view.lead(report),
            cards=cards(report, evaluations, layers),
            evaluations=[evaluation_table(one) for one in evaluations],
            pictures=[picture for picture in pictures if picture is not None],
            why_untimed=why_untimed(report),
            columns=LAYER_COLUMNS,
            meanings=LAYER_MEANINGS,
            layer_data=Markup(layer_data(layers)) if layers is not None else None,  # noqa: S704 - inert, see there
            tables=view.tables(report),
            kept_groups=view.kept_groups(report),
            notes=report.notes,
            config_lines=view.config_lines(report),
        )
    )


def comparison_page(compared: Compared) -> str:
    """The page that shows datasets side by side, in their order."""
    template = _environment().get_template("compare.html.j2")
    return template.render(
        note=view.WEIGHT_COSINE_NOTE,
        columns=compared.headings,
        unlike=compared.unlike,
        sections=sections(compared),
        pictures=tradeoffs(compared),
        differing=differing_layers(compared),
    )


def document_page(document: Document) -> str:
    """The page of any other report, made from its parts."""
    return _environment().get_template("document.html.j2").render(document=document)


def save_page(file: Path, page: str) -> None:
    """Writes `page` to `file`. Raises StorageError if that fails."""
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        message = f"the page can't be written ({reason}); choose another file"
        raise StorageError(message, uri=str(file)) from error


@cache
def _environment() -> Environment:
    """One environment for all pages of a process: it keeps the compiled templates, and compiling them takes 30 ms."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    style, script = ((_TEMPLATES / name).read_text("utf-8") for name in ("page.css", "layers.js"))
    environment.globals.update(
        policy=f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}",
        style=Markup(style),  # noqa: S704 - the package's own
        script=Markup(script),  # noqa: S704 - the package's own
    )
    environment.filters.update(params=text.params, counted=counted, prose=_prose)
    environment.tests["verdict"] = lambda value: isinstance(value, Verdict)
    environment.tests["layer_name"] = lambda value: isinstance(value, LayerName)
    return environment


def _prose(said: str) -> Markup:
    """Text as HTML. Numbers are not separated from their units, and text between backticks becomes code."""
    from markupsafe import Markup, escape

    parts = [escape(part) for part in text.unbreakable(printable(said)).split("`")]
    if len(parts) % 2 == 0:
        return Markup("`").join(parts)
    odd = Markup("<code>{}</code>")
    return Markup("").join(odd.format(part) if number % 2 else part for number, part in enumerate(parts))


def _source(content: str) -> str:
    """The source expression by which a content security policy allows this content."""
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


def _finalize(value: Any) -> Any:
    """Escapes control characters, so that none gets onto the page. Markup has been through here already."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
