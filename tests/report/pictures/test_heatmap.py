"""The heat map: a row per role, a column per block, the worst layer of each cell."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from arrowquant_dist.report.pictures.heatmap import heat_map
from arrowquant_dist.report.pictures.svg import Picture
from tests.report.layer_samples import NORM, layer


def test_each_role_has_its_blocks_and_the_worst_expert_stands_for_all() -> None:
    rows = [
        layer("layers.0.attn.q.weight", 20.0),
        layer("layers.2.attn.q.weight", 18.0),
        layer("layers.2.mlp.experts.0.up.weight", 16.0),
        layer("layers.2.mlp.experts.1.up.weight", 8.0),
        layer("head.weight", 3.0),
        NORM,
    ]
    picture = heat_map(rows)
    assert picture is not None
    cells = {
        title.text: rect.attrib["class"]
        for rect in ElementTree.fromstring(picture.svg).iter("rect")  # noqa: S314 - our own
        if (title := rect.find("title")) is not None
    }
    assert cells == {
        "layers.0.attn.q.weight: 20.0 dB": "s0",
        "layers.2.attn.q.weight: 18.0 dB": "s1",
        "layers.2.mlp.experts.1.up.weight: 8.0 dB": "s6",
    }


def test_roles_of_bert_are_whole() -> None:
    names = ("attention.output.dense", "output.dense", "attention.self.value")
    picture = heat_map([layer(f"encoder.layer.0.{name}.weight") for name in names])
    assert picture is not None
    assert [name for name in names if f">{name}<" not in picture.svg] == []


def test_nothing_is_drawn_without_blocks() -> None:
    assert heat_map([layer("head.weight"), NORM]) is None


def test_of_many_roles_those_with_the_most_noise_are_drawn() -> None:
    rows = [layer(f"layers.{i % 90}.part{i}.weight", 8.0 + i / 100) for i in range(3000)]
    picture = heat_map(rows)
    assert picture is not None
    assert "Of 3000 roles, the 24 with" in picture.caption
    assert len(re.findall("<title>", picture.svg)) == 24
    assert "layers.0.part0.weight" in picture.svg


def cells(picture: Picture | None) -> list[tuple[str, float, float]]:
    """Layer, place and width of each."""
    assert picture is not None
    return [
        (title.text or "", float(rect.attrib["x"]), float(rect.attrib["width"]))
        for rect in ElementTree.fromstring(picture.svg).iter("rect")  # noqa: S314 - our own
        if (title := rect.find("title")) is not None
    ]


def test_of_many_blocks_several_share_a_column_in_the_colour_of_the_worst() -> None:
    rows = [layer(f"layers.{i}.up.weight", 20.0 - (i == 501)) for i in range(1000)]
    picture = heat_map(rows)
    found = cells(picture)
    assert len(found) == 100
    assert all(width >= 1 for _, _, width in found)
    assert [name for name, *_ in found if "19.0 dB" in name] == ["layers.501.up.weight: 19.0 dB"]
    assert picture is not None
    assert "A column is 10 blocks" in picture.caption


def test_the_last_block_is_written_within_the_picture() -> None:
    picture = heat_map([layer(f"layers.{i}.up.weight") for i in range(61)])
    assert picture is not None
    x = float(re.findall(r'<text x="([\d.]+)"[^>]*>60<', picture.svg)[0])
    assert x + 7.3 <= 360


def test_numbers_without_a_block_take_no_room_where_most_are_such() -> None:
    found = cells(heat_map([layer(f"layers.{i}.up.weight") for i in (0, 1, 999_999)]))
    assert [width > 50 for _, _, width in found] == [True] * 3
    assert len({x for _, x, _ in found}) == 3


def test_a_hostile_role_is_inert() -> None:
    picture = heat_map([layer("layers.1.</text><script>\u202e")])
    assert picture is not None
    assert "<script" not in picture.svg
    assert "\u202e" not in picture.svg
