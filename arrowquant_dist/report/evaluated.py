"""Evaluations as tables: beside the errors of the weights, what the model makes of them."""

from __future__ import annotations

from collections.abc import Sequence

from arrowquant_dist.errors import counted
from arrowquant_dist.report import text
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.markdown import escaped, table_markdown
from arrowquant_dist.report.view import Table

TITLE = "Outputs against the original's"


def evaluation_table(found: Evaluation) -> Table:
    """What was measured with one set of texts, two columns."""
    facts = found.texts
    tokens = f", {counted(facts.tokens, 'token')}" if facts.tokens is not None else ""
    rows = [
        ("texts", f"{facts.name}: {counted(facts.texts, 'text')}{tokens}"),
        ("original", f"{found.model} ({found.architecture})"),
        *figure_lines(found),
        ("computed", f"in {found.arithmetic}, {text.seconds(found.seconds)}, {found.created_at}"),
    ]
    if found.pooling is not None:
        rows.append(("pooling", found.pooling))
    rows += [("note", note) for note in found.notes]
    return Table(TITLE, ("", ""), "ll", tuple(rows))


def figure_lines(found: Evaluation) -> tuple[tuple[str, str], ...]:
    """Label and figure, those that say most first."""
    if found.embeddings is not None:
        own = found.embeddings
        spread = f"5th percentile {text.cosine(own.cosine_p5)}, least {text.cosine(own.cosine_min)}"
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
    """A section for each set of texts, ending with a newline."""
    blocks = [f"# {escaped(TITLE)}"]
    for found in evaluations:
        blocks += [f"## {escaped(found.texts.name)}", table_markdown(evaluation_table(found))]
    return "\n\n".join(blocks) + "\n"


def compared_lines(reports: Sequence[Sequence[Evaluation]]) -> tuple[tuple[str, ...], ...]:
    """Rows of a comparison: for all texts that any of the datasets was evaluated with, the figures of those that were.

    Texts are the same where their digest is.
    """
    names = {one.texts.digest: one.texts.name for of_one in reports for one in of_one}
    rows: list[tuple[str, ...]] = []
    for digest, name in names.items():
        found = [
            next((one for one in reversed(each) if one.texts.digest == digest), None) for each in reports
        ]
        labels = dict.fromkeys(label for one in found if one is not None for label, _ in _short(one))
        rows += [
            (
                f"{label} ({name})",
                *(dict(_short(one)).get(label, text.MISSING) if one else text.MISSING for one in found),
            )
            for label in labels
        ]
    return tuple(rows)


def _short(found: Evaluation) -> tuple[tuple[str, str], ...]:
    if found.embeddings is not None:
        own = found.embeddings
        return (
            ("embedding cosine, mean", text.cosine(own.cosine_mean)),
            ("embedding cosine, 5th percentile", text.cosine(own.cosine_p5)),
            ("rank correlation of similarities", text.cosine(own.rank_correlation)),
            ("recall@10 of neighbours", text.cosine(own.recall_at_10)),
        )
    return tuple(line for line in figure_lines(found) if line[0] != "perplexity") + _perplexity(found)


def _perplexity(found: Evaluation) -> tuple[tuple[str, str], ...]:
    return (("perplexity", f"{found.next_tokens.perplexity:.4f}"),) if found.next_tokens is not None else ()
