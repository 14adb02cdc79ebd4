"""Evaluations as data, tables, pages and files, with the dataset and the texts that they are of."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest

from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.report.compare import comparison
from arrowquant_dist.report.compared import Compared
from arrowquant_dist.report.evaluated import evaluation_table, evaluations_markdown
from arrowquant_dist.report.evaluation import EmbeddingFigures, Evaluation, NextTokenFigures, TextFacts
from arrowquant_dist.report.evaluations import (
    EVALUATION_PATH,
    dataset_identity,
    evaluation_files,
    merged,
    read_evaluations,
)
from arrowquant_dist.report.page import comparison_page, report_page
from arrowquant_dist.report.reported import Reported
from arrowquant_dist.report.terminal import print_report
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.manifest import Manifest
from tests.report.report_samples import golden_report

MANIFEST = Manifest.of(
    [], index=b"", sidecars={}, fingerprint="f", source={}, config={}, compression="none", aliases={}
)


def of_embeddings(texts: str = "news.txt", dataset: str = "f", cosine: float = 0.93125) -> Evaluation:
    return Evaluation(
        kind="sentence-transformers",
        architecture="SentenceTransformer",
        model="s3://m/minilm",
        dataset=dataset,
        texts=TextFacts(texts, f"xxh3_128:{texts}", 100, 2, 2500, 256, 1),
        embeddings=EmbeddingFigures(384, cosine, 0.9, 0.85, 0.94, 4950, 0.625),
        next_tokens=None,
        arithmetic="float32",
        pooling="its own, by sentence-transformers",
        created_at="2026-11-28T18:00:00+00:00",
        seconds=12.5,
        versions={"torch": "2.13"},
        notes=("texts that were cut to 256 tokens: 1 of 100",),
    )


def of_next_tokens(texts: str = "news.txt") -> Evaluation:
    figures = NextTokenFigures(2400, 20.5, 20.9100, 0.02, 0.0123456, 0.9712)
    kind: dict[str, Any] = {
        "kind": "causal",
        "architecture": "LlamaForCausalLM",
        "pooling": None,
        "notes": (),
    }
    return replace(of_embeddings(texts), embeddings=None, next_tokens=figures, **kind)


@pytest.mark.parametrize("found", [of_embeddings(), of_next_tokens()])
def test_it_survives_json(found: Evaluation) -> None:
    assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def changed(**values: Any) -> dict[str, Any]:
    return {**of_embeddings().to_dict(), **values}


@pytest.mark.parametrize(
    "values",
    [
        {},
        changed(texts={}),
        changed(seconds="long"),
        changed(embeddings=None),
        changed(next_tokens=of_next_tokens().to_dict()["next_tokens"]),
        changed(embeddings={**of_embeddings().to_dict()["embeddings"], "cosine_mean": "high"}),
        changed(versions=[1]),
        changed(notes=None),
        changed(notes=[1]),
    ],
)
def test_what_is_none_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidCheckpoint, match="remove the file, and evaluate again"):
        Evaluation.from_dict(values)


def rows_of(found: Evaluation) -> dict[str, str]:
    return {row[0]: row[1] for row in evaluation_table(found).rows}


def test_the_table_says_what_was_measured_and_with_what() -> None:
    rows = rows_of(of_embeddings())
    assert rows["texts"] == "news.txt: 100 texts, 2500 tokens"
    assert rows["embedding cosine"] == "mean 0.931250, 5th percentile 0.900000, min 0.850000"
    assert rows["rank correlation of similarities"] == "0.940000"
    assert rows["recall@10 of neighbours"] == "0.625000"
    assert rows["pooling"] == "its own, by sentence-transformers"
    assert rows["note"] == "texts that were cut to 256 tokens: 1 of 100"
    rows = rows_of(of_next_tokens())
    assert rows["perplexity"] == "20.9100, the original's 20.5000"
    assert rows["excess of perplexity"] == "2.000 %"
    assert rows["KL divergence, mean"] == "0.0123 nats"
    assert rows["top-1 agreement"] == "97.1 %"


def test_reports_show_it_beside_the_errors_of_the_weights() -> None:
    report, found = golden_report(), (of_embeddings("<b>news"), of_next_tokens())
    out = io.StringIO()
    print_report(out, report, found)
    assert "mean 0.931250" in out.getvalue()
    page = report_page(report, found)
    assert "mean 0.931250" in page
    assert "97.1 %" in page
    assert "&lt;b&gt;news" in page
    assert "<b>news" not in page
    markdown = evaluations_markdown(found)
    assert "## &lt;b&gt;news" in markdown
    assert "| embedding cosine | mean 0.931250" in markdown


def test_a_comparison_sets_those_of_the_same_texts_side_by_side() -> None:
    report = golden_report()
    evaluations = [(of_embeddings(), of_embeddings("law.txt", cosine=0.5)), (of_embeddings(cosine=0.99),), ()]
    datasets = [Reported(name, report, each) for name, each in zip("abc", evaluations, strict=True)]
    table = comparison(Compared(datasets))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["embedding cosine, mean (news.txt)"] == ("0.931250", "0.990000", "–")
    assert rows["embedding cosine, mean (law.txt)"] == ("0.500000", "–", "–")
    assert [*rows].index("max error") < [*rows].index("embedding cosine, mean (news.txt)")
    page = comparison_page(Compared(datasets))
    assert "0.990000" in page
    assert "Stored bits against outputs (news.txt)" in page
    assert "Stored bits against outputs (law.txt)" not in page  # where there is one alone


def test_a_comparison_of_causal_models_has_their_figures() -> None:
    report = golden_report()
    table = comparison(Compared([Reported(name, report, (of_next_tokens(),)) for name in "ab"]))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["excess of perplexity (news.txt)"] == ("2.000 %", "2.000 %")
    assert rows["perplexity (news.txt)"] == ("20.9100", "20.9100")


def test_other_texts_stay_and_the_same_ones_are_replaced() -> None:
    first, other, again = of_embeddings(), of_embeddings("law.txt"), of_embeddings(cosine=0.7)
    assert merged((first, other), again) == (other, again)
    elsewhere = replace(again, model="s3://m/copy")
    assert merged((first, other), elsewhere) == (first, other, elsewhere)


@pytest.fixture
def store() -> Store:
    return open_store("memory://evaluations/target")


def write(store: Store, content: bytes | str) -> None:
    store.write(EVALUATION_PATH, content.encode() if isinstance(content, str) else content)


def test_those_of_the_dataset_are_read_back_and_those_of_one_before_it_left_out(store: Store) -> None:
    store.delete([EVALUATION_PATH])
    assert read_evaluations(store, MANIFEST) == ()
    own, earlier = of_embeddings(), of_embeddings("law.txt", dataset="another run's")
    for path, content in evaluation_files([earlier, own]).items():
        store.write(path, content)
    assert read_evaluations(store, MANIFEST) == (own,)
    assert dataset_identity(replace(MANIFEST, run="another run's")) == earlier.dataset
    assert read_evaluations(store, replace(MANIFEST, run="another run's")) == (earlier,)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "the evaluations are damaged"),
        ("[]", "JSON, but not with evaluations"),
        ('{"evaluations": []}', "its evaluation_version is not one"),
        (
            '{"evaluations": [], "evaluation_version": 2}',
            "evaluation_version is 2, this release reads up to 1",
        ),
        ('{"evaluations": [5], "evaluation_version": 1}', "one of the evaluations is not an object"),
        ('{"evaluations": [{}], "evaluation_version": 1}', "an evaluation is damaged"),
    ],
)
def test_a_damaged_file_is_named(store: Store, content: str, said: str) -> None:
    write(store, content)
    with pytest.raises(InvalidCheckpoint, match=said) as caught:
        read_evaluations(store, MANIFEST)
    assert caught.value.uri == "memory://evaluations/target/report/evaluation.json"
