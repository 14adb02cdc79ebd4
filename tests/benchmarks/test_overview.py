"""The overview can be measured, stored and shown, and says which peers are not installed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from tests.benchmarks.overview import run
from tests.benchmarks.overview.decoded_peers import decoders
from tests.benchmarks.overview.figures import Comparison, Curve, Measured, Overview, Spot
from tests.benchmarks.overview.picture import picture
from tests.benchmarks.overview.turns import in_turns
from tests.benchmarks.overview.words import markdown

_OURS = Measured((90.0, 120.0, 100.0))
SHOWN = Overview(
    date="2026-01-02",
    machine="a <machine>, 2 cores",
    rounds=3,
    params=250_000_000,
    versions={"torch": "2.13"},
    comparisons=(
        Comparison(
            "in memory",
            "int8",
            "Mparam/s",
            Measured((90.0, 120.0, 100.0)),
            "peer 1",
            Measured((45.0, 40.0, 50.0)),
        ),
        Comparison(
            "in memory",
            "int8",
            "Mparam/s",
            Measured((90.0, 120.0, 100.0)),
            "slow & <odd>",
            Measured((200.0,) * 3),
        ),
        Comparison("files", "int4", "Mparam/s", Measured((9.0, 9.0, 9.0)), "peer 2", None, "not installed"),
    ),
    spots=(
        Spot("ours", "--size 5.5MB", 5_500_000, 0.78),
        Spot("ours", "--size 7.3MB", 7_300_000, 0.91),
        Spot("ours, 200 texts", "--size 7.3MB --hessians", 7_300_000, 0.98),
        Spot("peer 1", "int4", 11_000_000, 0.95),
    ),
    curves=(
        Curve(
            "rate by workers",
            "workers",
            "Mparam/s",
            ((1.0, Measured((1.0, 2.0))), (2.0, Measured((3.0, 4.0)))),
        ),
    ),
)


def test_what_readme_shows_is_made_of_the_figures_that_lie_beside_it() -> None:
    results = Path(__file__).with_name("results")
    kept = run.read(results)
    assert (results / "overview.md").read_text(encoding="utf-8") == markdown(kept)
    assert (results / "overview.svg").read_text(encoding="utf-8") == picture(kept)


def test_ratios_are_those_of_the_same_round() -> None:
    ratio = SHOWN.comparisons[0].ratio
    assert ratio is not None
    assert ratio.values == (2.0, 3.0, 2.0)
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 3.0)


def test_it_is_the_same_after_its_file(tmp_path: Path) -> None:
    run.write(SHOWN, tmp_path)
    assert run.read(tmp_path) == SHOWN
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(run.NAMES)


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    run.write(SHOWN, tmp_path)
    values = json.loads((tmp_path / "overview.json").read_text())
    (tmp_path / "overview.json").write_text(json.dumps({**values, "overview_version": 99}))
    with pytest.raises(ValueError, match="overview_version 99, not 1"):
        run.read(tmp_path)


def test_the_table_has_medians_spread_and_who_is_not_there() -> None:
    text = markdown(SHOWN)
    assert (
        "| int8 | 100 Mparam/s (90.0–120) | peer 1 | 45.0 Mparam/s (40.0–50.0) | **2.00×** (2.00–3.00) |"
        in text
    )
    assert "| int4 | 9.00 Mparam/s (9.00–9.00) | peer 2 | not installed | – |" in text
    assert "| --size 5.5MB | ours | 5.50 MB | 0.7800 |" in text
    assert "Measured on 2026-01-02, a <machine>, 2 cores; 3 rounds" in text


def test_the_picture_is_well_formed_and_has_each_figure_in_words() -> None:
    drawn = picture(SHOWN)
    root = ElementTree.fromstring(drawn)  # noqa: S314  our own
    said = ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]
    assert any("slow & <odd>" in text for text in said)
    assert {"2.00×", "0.50×"} <= set(said)
    assert any(text.startswith("4  int4, peer 1: 11.00 MB") for text in said)
    assert "peer 2" not in drawn  # there is nothing to draw
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")


def test_the_labels_of_the_ratios_are_below_the_lines_of_their_grid() -> None:
    drawn = picture(SHOWN)
    labels = re.findall(r'<text x="([\d.]+)" [^>]*class="axis"[^>]*>[\d.]+×<', drawn)
    assert len(labels) > 2
    for label in labels:
        assert re.search(rf'd="M{label} [\d.]+L{label} ', drawn)


def test_a_peer_that_fails_is_told_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> float:
        raise RuntimeError("cannot do this here")

    assert in_turns({"ours": lambda: 1.0, "peer": failing}, 2) == {"ours": [1.0, 1.0]}
    assert "peer: cannot do this here" in capsys.readouterr().err


def test_peers_bytes_are_those_of_their_bits_and_scales_and_more_bits_keep_more() -> None:
    weight = torch.randn(16, 384, generator=torch.Generator().manual_seed(0))
    errors = {}
    for decoder in decoders():
        values, nbytes = decoder.stored(weight)
        assert values.shape == weight.shape
        errors[decoder.maker, decoder.name] = (nbytes, float((values - weight).square().mean()))
    four, three, two = (errors["HQQ's solver", f"{bits} bits g128"] for bits in (4, 3, 2))
    assert [four[0], three[0], two[0]] == [16 * 384 * bits // 8 + 16 * 3 * 4 for bits in (4, 3, 2)]
    assert four[1] < three[1] < two[1]


def test_the_machine_is_said_with_its_cores_and_memory() -> None:
    said = run.machine()
    assert "core" in said
    assert "GiB" in said
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in said


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_it_is_measured_on_sizes_that_say_nothing(tmp_path: Path) -> None:
    settings = run.Settings(
        runs=1, side=256, params=1_500_000, stored_nbytes=1, texts=0, folder=str(tmp_path)
    )
    found = run.measure(settings)
    assert {row.part for row in found.comparisons} == {
        "quantize in memory, one thread",
        "quantize a file into a file",
        "load, verified, from the page cache",
        "stream codes from S3, verified",
        "export, verified",
    }
    assert len(found.curves) == 6
    assert {spot.maker for spot in found.spots} >= {"ours", "HQQ's solver"}
    ours = {spot.name: spot for spot in found.spots if spot.maker == "ours"}
    assert ours["int8 a row"].cosine > ours["int4 g128"].cosine > ours["int2 g128"].cosine
    assert not list(tmp_path.iterdir())
    ElementTree.fromstring(picture(found))  # noqa: S314  our own
