"""The page in a browser, with more configs than there is room for side by side: nothing is cut off anywhere."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from arrowquant_dist import Validation
from arrowquant_dist.report.page import document_page
from arrowquant_dist.validation.document import validation_document
from arrowquant_dist.validation.named_configs import MOST_CONFIGS
from tests.report.chromium import PROGRAM, Tab, chromium
from tests.report.test_browser import CONTRASTS, PDFTOTEXT, SMALLEST

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="chromium is not installed (apt-get install chromium)"
)
NAMES = [f"int{i}-asymmetric-in-groups-of-{i}" for i in range(MOST_CONFIGS)]


@pytest.fixture(scope="module")
def tab(found: Validation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    first = found.datasets[0]
    datasets = tuple(replace(first, name=name) for name in NAMES)
    criteria = tuple(replace(one, config=name) for one in found.criteria for name in NAMES)
    place = tmp_path_factory.mktemp("page")
    many = replace(found, datasets=datasets, criteria=criteria)
    (place / "page.html").write_text(document_page(validation_document(many)), encoding="utf-8")
    with chromium(place / "profile") as tab:
        tab.open(place / "page.html")
        yield tab


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_clipped_too_small_or_too_faint(
    tab: Tab, width: int, scheme: Literal["light", "dark"]
) -> None:
    tab.scheme(scheme)
    tab.width(width)
    assert tab.value("document.documentElement.scrollWidth") <= width
    clipped = "[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth)"
    assert tab.value(f"{clipped}.map((one) => one.textContent.trim().slice(0, 60))") == []
    assert tab.value(SMALLEST) >= 11
    least, words = tab.value(CONTRASTS)[0]
    assert least >= 4.5, words


def test_nothing_is_asked_for_and_nothing_complains(tab: Tab) -> None:
    assert tab.complaints == []
    assert len(tab.requests) == 1


@pytest.mark.skipif(PDFTOTEXT is None, reason="pdftotext is not installed (apt-get install poppler-utils)")
def test_every_config_is_on_paper_in_each_table(tab: Tab, tmp_path: Path) -> None:
    paper = tmp_path / "page.pdf"
    paper.write_bytes(tab.printed())
    raw = subprocess.run([str(PDFTOTEXT), "-raw", paper, "-"], check=True, capture_output=True, text=True)
    printed = re.sub(r"\s", "", raw.stdout)
    for table in ("Summary", "Outputsagainsttheoriginal's", "Quantizationbyphase"):
        assert f"{table},4of4" in printed
    assert [name for name in NAMES if printed.count(name) < 10] == []
