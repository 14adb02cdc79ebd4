"""Evaluations of a model's outputs, as tables beside those of the errors of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arrowquant_dist.errors import counted
from arrowquant_dist.report import text
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.markdown import escaped, table_markdown
from arrowquant_dist.report.view import Table

TITLE = "Outputs against the original's"


def evaluation_table(found: Evaluation) -> Table:
    """The facts and figures of one evaluation, in two columns."""
    facts = found.texts
    tokens = f", {counted(facts.tokens, 'token')}" if facts.tokens is not None else ""
    rows = [
        ("texts", f"{facts.name}: {counted(facts.texts, 'text')}{tokens}"),
        ("original", f"{found.model} ({found.architecture})"),
        *figure_lines(found),
        (
            "computed",
            f"in {found.arithmetic}, {text.seconds(found.seconds)}, {text.moment(found.created_at)}",
        ),
    ]
    if found.pooling is not None:
        rows.append(("pooling", found.pooling))
    rows += [("note", note) for note in found.notes]
    return Table(TITLE, ("", ""), "ll", tuple(rows))


def figure_lines(found: Evaluation) -> tuple[tuple[str, str], ...]:
    """(label, figure) pairs, the most informative first."""
    if found.embeddings is not None:
        own = found.embeddings
        spread = f"5th percentile {text.cosine(own.cosine_p5)}, min {text.cosine(own.cosine_min)}"
        return (
            ("embedding cosine", f"mean {text.cosine(own.cosine_mean)}, {spread}"),
            ("rank correlation of similarities", text.cosine(own.rank_correlation)),
            ("recall@10 of neighbours", text.cosine(own.recall_at_10)),
        )
    tokens = found.next_tokens
    if tokens is None:
        return ()
    original = f"the original's {tokens.perplexity_original:.4f}"
    return (
        ("perplexity", f"{tokens.perplexity:.4f}, {original}"),
        ("excess of perplexity", f"{100 * tokens.excess:.3f} %"),
        ("KL divergence, mean", f"{text.small(tokens.kl_mean)} nats"),
        ("top-1 agreement", text.share(tokens.top1_agreement)),
    )


def evaluations_markdown(evaluations: Sequence[Evaluation]) -> str:
    """Markdown with a section for each evaluation, ending with a newline."""
    blocks = [f"# {escaped(TITLE)}"]
    for found in evaluations:
        blocks += [f"## {escaped(found.texts.name)}", table_markdown(evaluation_table(found))]
    return "\n\n".join(blocks) + "\n"


HIGH, LOW = 1, -1


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure. value: its value; None if it was not measured. shown: the value as text. better: HIGH or LOW,
    whichever is better, or 0 if neither is."""

    label: str
    value: float | None
    shown: str
    better: int


def measures(found: Evaluation) -> tuple[Measure, ...]:
    """All figures by which datasets are compared, the most informative first."""
    own, tokens = found.embeddings, found.next_tokens
    if own is not None:
        return (
            Measure("embedding cosine, mean", own.cosine_mean, text.cosine(own.cosine_mean), HIGH),
            Measure("embedding cosine, 5th percentile", own.cosine_p5, text.cosine(own.cosine_p5), HIGH),
            Measure(
                "rank correlation of similarities",
                own.rank_correlation,
                text.cosine(own.rank_correlation),
                HIGH,
            ),
            Measure("recall@10 of neighbours", own.recall_at_10, text.cosine(own.recall_at_10), HIGH),
        )
    if tokens is None:
        return ()
    return (
        Measure("excess of perplexity", tokens.excess, f"{100 * tokens.excess:.3f} %", LOW),
        Measure("KL divergence, mean", tokens.kl_mean, f"{text.small(tokens.kl_mean)} nats", LOW),
        Measure("top-1 agreement", tokens.top1_agreement, text.share(tokens.top1_agreement), HIGH),
        Measure("perplexity", tokens.perplexity, f"{tokens.perplexity:.4f}", LOW),
    )
