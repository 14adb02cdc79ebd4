"""safetensors' own reader reads the headers that we write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import safe_open

from arrowquant_dist.checkpoint.safetensors_header import StoredTensor, header_of


def test_its_reader_finds_tensors_and_metadata_and_values_begin_at_a_multiple_of_8(tmp_path: Path) -> None:
    values: dict[str, np.ndarray] = {
        "größe": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(7, np.uint8),
    }
    kinds = {"größe": "F32", "b": "U8"}
    header = header_of(
        [StoredTensor(name, kinds[name], value.shape, value.nbytes) for name, value in values.items()],
        {"mark": "x"},
    )
    assert len(header) % 8 == 0
    path = tmp_path / "model.safetensors"
    path.write_bytes(header + b"".join(value.tobytes() for value in values.values()))
    with safe_open(path, "np") as file:
        assert file.metadata() == {"mark": "x"}
        for name, value in values.items():
            np.testing.assert_array_equal(file.get_tensor(name), value)


def test_without_tensors_it_is_an_empty_object() -> None:
    assert header_of([]) == b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "
