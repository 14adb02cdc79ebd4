"""A QuantEmbedding gives rows of the decoded table, and decodes no other rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from arrowquant_dist.modules import QuantEmbedding, operations, tiles
from arrowquant_dist.modules.packed_rows import PackedRows
from tests.modules.matrices import random_matrix


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("zeros", ["none", "real"])
@pytest.mark.parametrize(
    "indices", [torch.tensor(3), torch.tensor([]).long(), torch.tensor([[0, 9], [9, 4]])]
)
def test_rows_are_those_of_the_decoded_table(indices: torch.Tensor, zeros: str, bits: int) -> None:
    matrix = random_matrix(10, 70, bits, 32, zeros)
    rows = QuantEmbedding(matrix.weight)(indices)
    assert torch.equal(rows, torch.nn.functional.embedding(indices, matrix.decoded))


def test_rows_have_the_dtype_of_the_weight() -> None:
    matrix = random_matrix(10, 70, 4, 32)
    table = QuantEmbedding(matrix.weight).to(torch.bfloat16)
    assert torch.equal(table(torch.arange(10)), matrix.packed.dequantize(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_indices_are_of_both_whole_dtypes(dtype: torch.dtype) -> None:
    matrix = random_matrix(10, 70, 4, 32)
    assert torch.equal(QuantEmbedding(matrix.weight)(torch.tensor([1], dtype=dtype)), matrix.decoded[1:2])


@pytest.mark.parametrize("index", [10, -1])
def test_rows_that_are_not_there_are_an_error(index: int) -> None:
    with pytest.raises(IndexError):
        QuantEmbedding(random_matrix(10, 70, 4, 32).weight)(torch.tensor([index]))


def test_only_the_rows_that_are_looked_up_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def decoded_tiles(packed: PackedRows, dtype: torch.dtype) -> Iterator[tiles.RowTile]:
        decoded.append(len(packed))
        return tiles.decoded_tiles(packed, dtype)

    monkeypatch.setattr(operations, "decoded_tiles", decoded_tiles)
    QuantEmbedding(random_matrix(1000, 16, 4).weight)(torch.tensor([1, 5, 5]))
    assert decoded == [3]


def test_it_can_be_compiled_into_one_graph() -> None:
    table = QuantEmbedding(random_matrix(10, 70, 4, 32).weight)
    compiled = torch.compile(table, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(torch.tensor([4, 2])), table(torch.tensor([4, 2])))
