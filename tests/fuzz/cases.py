"""One case of each campaign, as a function of its seed. Raises AssertionError if the claim is broken."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz import forged
from tests.fuzz.compare import check_layer, check_values
from tests.fuzz.decoder import DecodedLayer, as_float, bits_dtype, read_dataset
from tests.fuzz.loaded import check_loader
from tests.fuzz.pickles import KINDS, torch_file
from tests.fuzz.program import Ending, run
from tests.fuzz.settings import random_settings
from tests.fuzz.sources import CODES, Source, Tensor, write_source

ACCEPTED, REFUSED = "accepted", "refused"
# Reasons for which sources with nothing odd may be refused: settings of a config that do not suit the layers.
_REASONS = (
    "overrides[",
    "row_dims[",
    "no layers",
    "no tensor",
    "nothing to quantize",
    "holds no",
    "whose scale is unknown",
    "has no name",
)


def safetensors(seed: int, folder: Path) -> str:
    """A source is refused in one line, or its dataset is sound and has every value that the formulas give."""
    random_ = random.Random(seed)  # noqa: S311
    source = write_source(folder / "source", random_)
    expected = (
        source.expected
        if source.expected is not None
        else tensors_of(folder / "source" / "model.safetensors")
    )
    settings = random_settings(random_, list(expected or {}))
    (folder / "config.yaml").write_text(json.dumps(settings), encoding="utf-8")
    ended = run(
        "quantize", str(folder / "source"), str(folder / "target"), "--config", str(folder / "config.yaml")
    )
    if ended.code:
        assert ended.code == 2, ended.error
        assert not (folder / "target" / "manifest.json").exists()
        assert _may_be_refused(source, settings, ended), ended.error
        return f"{REFUSED} {source.kind}: {ended.error}"
    layers = read_dataset(folder / "target")
    _check_layers(layers, source, expected, settings)
    check_loader(folder / "target", layers)
    verified = run("verify", str(folder / "target"))
    assert verified.code == 0, verified.output
    return f"{ACCEPTED} {source.kind}"


def _may_be_refused(source: Source, settings: dict[str, Any], ended: Ending) -> bool:
    if source.kind in ("mutated", "companions", "nothing"):
        return True
    if source.kind == "not finite":
        return settings["non_finite"] == "error" or any(reason in ended.error for reason in _REASONS)
    return any(reason in ended.error for reason in _REASONS)


def _check_layers(
    layers: dict[str, DecodedLayer],
    source: Source,
    expected: dict[str, Tensor] | None,
    settings: dict[str, Any],
) -> None:
    if source.expected is not None:
        assert layers.keys() == source.expected.keys() | source.decoded.keys()
    for name, layer in layers.items():
        tensor = (expected or {}).get(name)
        if tensor is not None and (tensor.dtype, tensor.shape) == (layer.dtype, layer.shape):
            try:
                check_layer(layer, tensor, settings)
            except AssertionError as error:
                raise AssertionError(
                    f"{name!r:.60} {layer.dtype} {layer.shape} {source.kind} {settings}: {error}"
                ) from error
        elif name in source.decoded:
            assert layer.shape == source.decoded[name].shape
            _check_decoded(layer, source.decoded[name], settings)
        else:
            assert source.kind in ("companions", "mutated"), name


def _check_decoded(layer: DecodedLayer, values: np.ndarray, settings: dict[str, Any]) -> None:
    if any(block.codes is not None for block in layer.blocks):
        check_values(layer, values, settings, coded=2.0**-7)
        return
    found = np.concatenate([as_float(block.bits, layer.dtype) for block in layer.blocks])
    assert np.allclose(found, values.ravel(), rtol=2.0**-7, atol=1e-6)


def tensors_of(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file according to its format; None if they make no sense."""
    data = path.read_bytes()
    names = {code: dtype for dtype, code in CODES.items()}
    try:
        [length] = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        body = data[8 + length :]
        found = {}
        for name, entry in header.items():
            dtype, (start, stop) = names[entry["dtype"]], entry["data_offsets"]
            bits = np.frombuffer(body[start:stop], bits_dtype(dtype))
            found[name] = Tensor(dtype, tuple(entry["shape"]), bits)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        return None
    return found


def pickle(seed: int, folder: Path) -> str:
    """A hostile pickle is refused in one line, or quantized into a sound dataset of the values in its storage."""
    random_ = random.Random(seed)  # noqa: S311
    kind = list(KINDS)[seed % len(KINDS)]
    (folder / "model.bin").write_bytes(torch_file(KINDS[kind](random_)))
    ended = run("quantize", str(folder / "model.bin"), str(folder / "target"))
    if ended.code:
        assert ended.code == 2, ended.error
        assert not (folder / "target" / "manifest.json").exists()
        return f"{REFUSED} {kind}: {ended.error}"
    layers = read_dataset(folder / "target")
    for layer in layers.values():  # the storage of the file is 16 bytes of zeros
        assert not any(layer.bits())
    check_loader(folder / "target", layers)
    assert run("verify", str(folder / "target")).code == 0
    return f"{ACCEPTED} {kind}"


def crash(_seed: int, _folder: Path) -> str:
    """Crashes, for tests of the campaign itself."""
    os.kill(os.getpid(), signal.SIGSEGV)
    return ACCEPTED


CASES: dict[str, Callable[[int, Path], str]] = {
    "safetensors": safetensors,
    "datasets": forged.dataset,
    "pickles": pickle,
    "crash": crash,
}
