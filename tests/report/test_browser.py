"""The page in a browser: the table's script works, nothing is requested, and there are no complaints."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from arrowquant_dist.report.compared import Compared
from arrowquant_dist.report.layer_table import LAYER_COLUMNS
from arrowquant_dist.report.page import comparison_page, report_page
from arrowquant_dist.report.reported import Reported
from tests.reduce.attempts import attempt, cluster
from tests.report.chromium import PROGRAM, Tab, chromium
from tests.report.layer_samples import NORM, layer
from tests.report.report_samples import golden_report, timed_report
from tests.report.test_evaluations import of_embeddings, of_next_tokens

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="chromium is not installed (apt-get install chromium)"
)
PDFTOTEXT = shutil.which("pdftotext")
LAYERS = (
    *(
        layer(f"model.layers.{i}.mlp.up_proj.weight", 8 + i * 7 % 100 / 10, layer_type="feed-forward")
        for i in range(300)
    ),
    layer("</script><script>document.title = 'owned'</script>\u202e", 3.0),
    layer("lossless.weight", None, mse=0.0, cosine=1.0, max_error=0.0),
    NORM,
)
NAMES = "[...document.querySelectorAll('#layers tbody tr')].map((row) => row.firstChild.textContent)"
SMALLEST = """(() => {
  let least = 99;
  for (const one of document.querySelectorAll("body *")) {
    if (one.firstChild?.nodeType !== 3 || !one.textContent.trim() || !one.getClientRects().length) continue;
    const picture = one.ownerSVGElement;
    const scale = picture ? picture.getBoundingClientRect().width / picture.viewBox.baseVal.width : 1;
    least = Math.min(least, parseFloat(getComputedStyle(one).fontSize) * scale);
  }
  return least;
})()"""

# On how many lines each of some nodes is, of the name of each layer in the table. Given: (name's element) => nodes.
LINES = """(nodes) => [...document.querySelectorAll("#layers td code")].map((code) => nodes(code).map((one) => {
  const range = document.createRange();
  range.selectNodeContents(one);
  return new Set([...range.getClientRects()].map((box) => box.top)).size;
}))"""

# Words of pictures that end outside of them.
OUTSIDE = """(() => {
  const found = [];
  for (const one of document.querySelectorAll("figure > svg text")) {
    const [own, whole] = [one.getBoundingClientRect(), one.ownerSVGElement.getBoundingClientRect()];
    if (own.left < whole.left - 1 || own.right > whole.right + 1) found.push(one.textContent);
  }
  return found;
})()"""

# [contrast, text] of every text on the page, against what is behind it.
CONTRASTS = """(() => {
  const light = (color) => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (!color.endsWith(", 0)") && color !== "transparent") return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    if (one.firstChild?.nodeType !== 3 || !one.textContent.trim() || !one.getClientRects().length) continue;
    const ink = one.ownerSVGElement ? getComputedStyle(one).fill : getComputedStyle(one).color;
    const [a, b] = [light(ink), light(behind(one))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), one.textContent.trim().slice(0, 40)]);
  }
  return found.sort((x, y) => x[0] - y[0]).slice(0, 5);
})()"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    place = tmp_path_factory.mktemp("browser")
    evaluations = [of_embeddings(), of_next_tokens()]
    receipts = [*cluster(workers=20, shards=200), attempt(200, 5.0, 2.0, "</title><script>\u202e/7")]
    page = report_page(timed_report(receipts), evaluations, LAYERS)
    (place / "page.html").write_text(page, encoding="utf-8")
    with chromium(place / "profile") as tab:
        tab.width(1280)
        tab.open(place / "page.html")
        yield tab


def click(tab: Tab, column: str) -> list[str]:
    tab.value(f"document.querySelector('#layers th[data-column={column}] button').click()")
    names: list[str] = tab.value(NAMES)
    return names


def find(tab: Tab, words: str) -> list[str]:
    tab.value(
        f"(() => {{ const box = document.querySelector('#layers input'); box.value = '{words}';"
        " box.dispatchEvent(new Event('input')); })()"
    )
    names: list[str] = tab.value(NAMES)
    return names


def test_layers_are_sorted_and_those_without_a_figure_come_last(tab: Tab) -> None:
    names = find(tab, "")
    assert names[:2] == [LAYERS[0].layer_name, LAYERS[1].layer_name]
    rising = click(tab, "sqnr")
    assert rising[0].startswith("</script>")
    assert (
        click(tab, "sqnr")[:2]
        == [
            "lossless.weight",  # its error is infinitely far below its weights
            max(LAYERS[:300], key=lambda row: row.sqnr_db or 0).layer_name,
        ]
    )
    assert click(tab, "sqnr")[:2] == names[:2]  # in the model's order again
    assert click(tab, "name")[1:4] == [
        "lossless.weight",
        "model.layers.0.mlp.up_proj.weight",
        LAYERS[1].layer_name,
    ]
    click(tab, "name")
    click(tab, "name")


def test_what_is_searched_is_a_text_and_no_pattern(tab: Tab) -> None:
    assert find(tab, "layers.*.up") == []
    assert find(tab, "(") == find(tab, "[a-z") == find(tab, "^model") == []
    assert find(tab, "</script><script>") == [LAYERS[300].layer_name.replace("\u202e", "\\u202e")]


def test_layers_are_searched_by_all_words_and_by_type(tab: Tab) -> None:
    assert find(tab, "LAYERS.7. up") == ["model.layers.7.mlp.up_proj.weight"]
    assert find(tab, "no such") == []
    assert tab.value("document.querySelector('#layers output').textContent") == "0 of 303 layers"
    assert find(tab, "1-d") == [NORM.layer_name]
    find(tab, "")
    choose = "(() => {{ const box = document.querySelector('#layers select'); box.value = '{}';"
    choose += " box.dispatchEvent(new Event('change')); }})()"
    tab.value(choose.format("norm"))
    assert tab.value(NAMES) == [NORM.layer_name]
    tab.value(choose.format(""))


def test_rows_are_drawn_as_they_are_asked_for_and_all_of_them_for_paper(tab: Tab) -> None:
    assert len(find(tab, "")) == 40
    tab.value("window.dispatchEvent(new Event('beforeprint'))")
    assert tab.value(NAMES) == [
        name if name.isprintable() else name.replace("\u202e", "\\u202e")
        for name in (row.layer_name for row in LAYERS)
    ]
    find(tab, "")


def test_nothing_is_asked_for_nothing_complains_and_no_name_acts(tab: Tab) -> None:
    find(tab, "layers.1")
    assert tab.complaints == []
    assert len(tab.requests) == 1
    assert tab.requests[0].endswith("/page.html")
    assert tab.value("document.title") == "Quantization report"


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_clipped_and_no_word_is_too_small_to_read(tab: Tab, width: int) -> None:
    tab.width(width)
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value(SMALLEST) >= 11
    clipped = (
        "[...document.querySelectorAll('.window, .scroll')]"
        ".filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.textContent.trim())"
    )
    assert tab.value(clipped) == []
    assert tab.value(OUTSIDE) == []
    tab.width(1280)


def test_on_paper_layers_are_a_table_however_narrow_it_is(tab: Tab) -> None:
    tab.scheme("light", "print")
    tab.width(700)
    row = "document.querySelector('#layers tbody tr')"
    assert tab.value(f"getComputedStyle({row}).display") == "table-row"
    assert tab.value("document.documentElement.scrollWidth") <= 700
    tab.scheme("light")
    tab.width(1280)


def test_a_name_of_a_layer_breaks_behind_its_dots(tab: Tab) -> None:
    tab.scheme("light", "print")
    tab.width(560)
    names = find(tab, "layers.1")
    lines = tab.value(f"({LINES})((code) => [...code.childNodes].filter((one) => one.nodeType === 3))")
    assert lines == [[1] * 6] * len(names)
    assert tab.value(f"({LINES})((code) => [code])") == [[2]] * len(names)
    find(tab, "")
    tab.width(1280)
    tab.scheme("light")


def test_what_is_folded_is_unfolded_for_paper(tab: Tab) -> None:
    folded = "document.querySelectorAll('details:not([open])').length"
    tab.value("document.querySelectorAll('details').forEach((one) => { one.open = false; })")
    assert tab.value(folded) >= 2
    tab.value("window.dispatchEvent(new Event('beforeprint'))")
    assert tab.value(folded) == 0
    find(tab, "")


@pytest.mark.parametrize(
    ("scheme", "medium", "is_white"), [("light", "", True), ("dark", "", False), ("dark", "print", True)]
)
def test_every_word_stands_out_from_what_is_behind_it(
    tab: Tab,
    scheme: Literal["light", "dark"],
    medium: Literal["", "print"],
    is_white: bool,  # noqa: FBT001
) -> None:
    tab.scheme(scheme, medium)
    ground = tab.value("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == is_white
    least, words = tab.value(CONTRASTS)[0]
    assert least >= 4.5, words
    tab.scheme("light")


@pytest.mark.skipif(PDFTOTEXT is None, reason="pdftotext is not installed (apt-get install poppler-utils)")
def test_all_layers_and_columns_are_on_paper(tab: Tab, tmp_path: Path) -> None:
    find(tab, "")
    paper = tmp_path / "page.pdf"
    paper.write_bytes(tab.printed())
    raw = subprocess.run([str(PDFTOTEXT), "-raw", paper, "-"], check=True, capture_output=True, text=True)
    printed = re.sub(r"\s", "", raw.stdout)
    assert not [row.layer_name for row in LAYERS[:300] if row.layer_name not in printed]
    titles = [re.sub(r"\s", "", title) for _, title in LAYER_COLUMNS]
    assert [title for title in titles if title not in printed] == []
    boxes = subprocess.run([str(PDFTOTEXT), "-bbox", paper, "-"], check=True, capture_output=True, text=True)
    width = float(re.findall(r'<page width="([\d.]+)"', boxes.stdout)[0])
    edges = [float(edge) for edge in re.findall(r'xMax="([\d.]+)"', boxes.stdout)]
    assert max(edges) <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phases_idle_lanes_and_the_page_are_of_different_colours(
    tab: Tab, scheme: Literal["light", "dark"]
) -> None:
    tab.scheme(scheme)
    colours = tab.value(
        "[getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('.idle')).fill,"
        " ...[...document.querySelectorAll('.stripe')].map((one) => getComputedStyle(one).stroke)]"
    )
    assert len(colours) == len({*colours}) == 6
    tab.scheme("light")


def test_five_targets_are_side_by_side(tab: Tab, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    datasets = [
        Reported(f"s3://bucket/out/int{i}-asymmetric", golden_report(), layers=LAYERS) for i in range(5)
    ]
    page.write_text(comparison_page(Compared(datasets)), encoding="utf-8")
    tab.open(page)
    assert tab.complaints == []
    tables = "[...document.querySelectorAll('.scroll')]"
    assert tab.value(f"{tables}.every((one) => one.scrollWidth <= one.clientWidth)")
    tab.width(390)
    assert tab.value("document.documentElement.scrollWidth") <= 390
    first = "document.querySelector('.compare tbody th[scope=row]').getBoundingClientRect().left"
    before = tab.value(first)
    tab.value(f"{tables}[0].scrollLeft = 150")
    assert tab.value(first) == before  # it stays where it is
    tab.width(1280)
