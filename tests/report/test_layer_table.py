"""All layers as JSON in the page: complete, inert and small."""

from __future__ import annotations

import json

from arrowquant_dist.report.layer_table import layer_data
from tests.report.layer_samples import NORM, QUERY, layer


def names(data: str) -> list[str]:
    """As the page's script reads them."""
    values = json.loads(data)
    read: list[str] = []
    for shared, rest in zip(values["shared"], values["rest"], strict=True):
        read.append((read[-1][:shared] if read else "") + rest)
    return read


def test_every_layer_is_there_with_its_figures() -> None:
    values = json.loads(layer_data([QUERY, NORM]))
    assert names(layer_data([QUERY, NORM])) == [QUERY.layer_name, NORM.layer_name]
    assert values["stored"] == [["int4 mse g128", "none: 1-D"], [0, 1]]
    assert (values["sqnr"], values["cosine"], values["mse"]) == ([20.0, None], [0.995, None], [2.5e-5, None])
    assert {len(values[key]) for key in ("params", "nbytes", "error", "rest")} == {2}


def test_names_that_share_odd_characters_come_back_whole() -> None:
    odd = ["a.\U0001f600.x", "a.\U0001f600.y", "a.é", "a.éb", "", "a"]
    assert names(layer_data([layer(name) for name in odd])) == odd


def test_nothing_in_a_name_can_end_the_script_or_turn_the_line() -> None:
    data = layer_data([layer("</script><!-- & \u202e\u2028\x1b", layer_type="<b>", kept_reason="<i>")])
    assert not set("<>&") & set(data)
    assert data.isascii()
    assert "\\\\u202e" in data  # as it is shown: the escape, not the character


def test_ten_thousand_layers_are_less_than_a_megabyte() -> None:
    rows = [
        layer(
            f"model.layers.{i // 160}.mlp.experts.{i % 160}.gate_up_proj.weight",
            8 + i % 977 / 100,
            params=7_340_032 + i,
            stored_nbytes=3_700_000 + i,
            mse=1.23456e-5 + i * 1e-9,
            cosine=0.9 + i * 1e-6,
            max_error=0.01 + i * 1e-6,
        )
        for i in range(10_000)
    ]
    assert len(layer_data(rows)) < 1_000_000
