"""The errors of weights and of outputs in one picture."""

from __future__ import annotations

import re
from dataclasses import replace

from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.report.pictures.outputs import errors_of_outputs
from tests.report.report_samples import golden_report
from tests.report.test_evaluations import of_embeddings, of_next_tokens

REPORT = golden_report()


def bars(*evaluations: Evaluation) -> list[tuple[str, float]]:
    """Class and length of each."""
    picture = errors_of_outputs(REPORT, evaluations)
    assert picture is not None
    found = re.findall(r'<rect [^>]*width="([\d.]+)"[^>]*class="([\w-]+)"', picture.svg)
    return [(tone, float(width)) for width, tone in found]


def test_outputs_stand_beside_the_weights_and_a_larger_error_is_a_longer_bar() -> None:
    (_, mean), (_, worst), (tone, output), (_, least) = bars(of_embeddings(cosine=0.9))
    assert tone == "of-outputs"
    assert mean < worst
    assert output < least
    nearer = bars(of_embeddings(cosine=0.99))[2][1]
    assert nearer < output


def test_next_tokens_have_their_own_figures_and_figures_are_written() -> None:
    picture = errors_of_outputs(REPORT, [of_next_tokens()])
    assert picture is not None
    assert "next tokens: other first choice (news.txt)" in picture.svg
    assert ">0.0288<" in picture.svg
    assert ">0.0123<" in picture.svg


def test_an_output_without_any_error_has_no_bar() -> None:
    found = of_embeddings()
    assert found.embeddings is not None
    equal = replace(found, embeddings=replace(found.embeddings, cosine_mean=1.0, cosine_min=1.0))
    assert bars(equal)[2][1] == 0.0


def test_there_is_no_picture_without_an_evaluation_or_a_figure_of_the_weights() -> None:
    assert errors_of_outputs(REPORT, []) is None
    assert errors_of_outputs(replace(REPORT, accuracy=None), [of_embeddings()]) is None


def test_names_of_texts_are_shortened_and_escaped() -> None:
    picture = errors_of_outputs(REPORT, [of_embeddings(f"<script>{'x' * 300}")])
    assert picture is not None
    assert "<script>" not in picture.svg
    assert "x" * 40 not in picture.svg
