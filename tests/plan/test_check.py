"""Nothing in a layer table is believed without a check."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arrowquant_dist.checkpoint.table import Checkpoint, SourceFile
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.plan import make_plan
from tests.plan.plan_sources import of_layers, raw_layers

INT8, RUN = QuantizationConfig(), RunConfig()
_X = raw_layers([("x", (4, 4), "float32")])[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (of_layers([]), "holds no layers"),
        (of_layers([replace(_X, name="")]), "a layer has no name"),
        (of_layers([replace(_X, name="\ud800")]), "is not Unicode"),
        (of_layers([replace(_X, name="x" * 70_000)]), "has 70000 bytes"),
        (of_layers([_X, replace(_X, offset=500)]), "layer 'x', .*: is stored twice"),
        (of_layers([replace(_X, dtype="float4")]), "dtype 'float4' is not supported"),
        (of_layers([replace(_X, shape=(-4, -4))]), "negative dimension"),
        (of_layers([replace(_X, shape=(1 << 40, 1 << 40))]), "more bytes than any file"),
        (of_layers([replace(_X, shape=(4, 5))]), "has 64 bytes, its shape .* needs 80"),
        (of_layers([replace(_X, offset=-8)]), "outside the file"),
        (
            replace(of_layers([_X]), files=(SourceFile(_X.uri, 120, "v"),)),
            r"100 to 164 are outside the file \(120",
        ),
        (of_layers([_X], {"tied": "gone"}), "layer 'tied', .*which is not a layer"),
        (of_layers([_X], {"x": "x"}), "but stored too"),
    ],
)
def test_a_layer_table_that_cannot_be_true_is_refused_before_a_weight_is_read(
    source: Checkpoint, message: str
) -> None:
    with pytest.raises(InvalidCheckpoint, match=message) as error:
        make_plan(source, INT8, RUN)
    assert error.value.uri is not None
