"""One flipped bit anywhere in a dataset: each way of loading gives the right values, or an error that says where.

If the bit belongs to a layer, the error names the layer, otherwise the file. A bit that nothing reads, or that has no
meaning (padding, a README), changes nothing.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel, BertTokenizerFast

from arrowquant_dist import (
    ArrowQuantizer,
    QuantizationConfig,
    RunConfig,
    TensorParallel,
    WeightLoader,
    load_codes_into,
    load_model,
    load_sentence_transformer,
    load_tokenizer,
)
from arrowquant_dist.errors import ArrowQuantError, CorruptWeights, IncompleteDataset, InvalidCheckpoint
from tests.datasets import manifest_of

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
CONFIG = BertConfig(vocab_size=10, max_position_embeddings=8, **SIZES)
TOKENS = torch.tensor([[1, 5, 6, 2]])
# What people read, and what only runs of `quantize` do.
UNREAD = ("README.md", "report/", "run/")
Damaged = (CorruptWeights, InvalidCheckpoint)  # the second: of another format, or of a newer version


def _bytes(tensors: Any) -> Any:
    """To be compared: shapes, dtypes and every bit."""
    if isinstance(tensors, torch.Tensor):
        bits = tensors.detach().contiguous().reshape(-1).view(torch.uint8)
        return tuple(tensors.shape), tensors.dtype, bits.numpy().tobytes()
    return {name: _bytes(tensor) for name, tensor in tensors.items()}


def _model(target: Path, **options: Any) -> Any:
    model = load_model(target, AutoModel, **options)
    with torch.inference_mode():
        output = model(TOKENS)[0]
    return model.config.to_json_string(), _bytes(model.state_dict()), _bytes(output)


def _filled(target: Path, fill: Callable[[torch.nn.Module, WeightLoader], object]) -> Any:
    model = BertModel(CONFIG)
    fill(model, WeightLoader(target))
    return _bytes(model.state_dict())


def _read_into(target: Path) -> Any:
    loader = WeightLoader(target)
    found = {}
    for name in loader.keys():  # noqa: SIM118
        layer = loader.layer(name)
        found[name] = torch.empty(layer.shape, dtype=getattr(torch, layer.dtype))
        loader.read_into(name, found[name])
    return _bytes(found)


def _codes(target: Path) -> Any:
    found = {}
    for name, tensor in WeightLoader(target, dequantize=False).stream():
        arrays = (tensor.codes, tensor.scales, tensor.zero_points)
        form = (tensor.shape, tensor.dtype, tensor.quant_type, tensor.group_size, tensor.quant_axis)
        found[name] = (form, *(array.tobytes() for array in arrays))
    return found


def _ranks(target: Path) -> Any:
    loader = WeightLoader(target)
    parts = {
        f"{name} {dim}": loader.read(name, parallel=TensorParallel(1, 2, dim))
        for name in loader.keys()  # noqa: SIM118
        for dim, size in enumerate(loader.layer(name).shape)
        if size % 2 == 0
    }
    return _bytes(parts)


def _rows(target: Path) -> Any:
    loader = WeightLoader(target)
    return _bytes({name: loader.read(name, rows=slice(1, 3)) for name in loader.keys()})  # noqa: SIM118


def _sentences(target: Path) -> Any:
    model = load_sentence_transformer(target)
    settings = [type(module) for module in model], model[1].get_config_dict(), model.prompts
    return settings, _bytes(model.state_dict()), model.encode(["a b c", "e"]).tobytes()


def _tokens(target: Path) -> Any:
    tokenizer = load_tokenizer(target)
    return tokenizer.get_vocab(), tokenizer(["a b c d", "e zz"])["input_ids"]


OF_WEIGHTS: dict[str, Callable[[Path], Any]] = {
    "stream": lambda target: _bytes(dict(WeightLoader(target).stream())),
    "codes": _codes,
    "read_into": _read_into,
    "rows": _rows,
    "ranks": _ranks,
    "load_into": lambda target: _filled(target, lambda model, loader: loader.load_into(model)),
    "load_codes_into": lambda target: _filled(target, load_codes_into),
}
OF_MODELS: dict[str, Callable[[Path], Any]] = {
    "load_model": _model,
    "load_model codes": lambda target: _model(target, codes=True),
    "load_sentence_transformer": _sentences,
    "load_tokenizer": _tokens,
}
WAYS = OF_WEIGHTS | OF_MODELS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sentence-transformers model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    folder = tmp_path_factory.mktemp("model")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\nd\ne")
    torch.manual_seed(0)
    BertModel(CONFIG).save_pretrained(folder / "bert")
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder / "bert")
    chain = [modules.Transformer(str(folder / "bert")), modules.Pooling(8)]
    SentenceTransformer(modules=chain, device="cpu").save(str(folder / "source"))
    return folder / "source"


@pytest.fixture(scope="module", params=["none", "zstd"])
def intact(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its dataset: int4 in groups, with zero points, and what is kept; with parts that are compressed or not."""
    config = QuantizationConfig("int4", per_channel=False, group_size=4, symmetric=False)
    target = tmp_path_factory.mktemp("intact") / "target"
    ArrowQuantizer(config, RunConfig(compression=request.param)).quantize(source, target)
    return target


@cache
def right(way: str, intact: Path) -> Any:
    """What a way gives of the dataset as it is."""
    return WAYS[way](intact)


@pytest.fixture
def target(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "target"))


@pytest.fixture
def bare(target: Path) -> Path:
    """Its parts alone."""
    return target / "weights"


def files_of(target: Path) -> list[Path]:
    return sorted(path for path in target.rglob("*") if path.is_file())


@contextmanager
def flipped(file: Path, place: int, bit: int) -> Iterator[None]:
    content = file.read_bytes()
    damaged = bytearray(content)
    damaged[place] ^= 1 << bit
    file.write_bytes(damaged)
    try:
        yield
    finally:
        file.write_bytes(content)


@cache
def layers_at(part: Path, index: Path) -> dict[int, str]:
    """{byte of the part: the layer that it is a value of}, by pyarrow's reading of the index."""
    found = {}
    for row in pq.read_table(index).to_pylist():
        assert part.as_posix().endswith(row["part"])
        for value in ("data", "scales", "zero_points", "chunk_digests"):
            start = row[f"{value}_offset"]
            found.update(
                dict.fromkeys(range(start, start + row[f"{value}_stored_nbytes"]), row["layer_name"])
            )
    return found


def outcome(way: str, target: Path, expected: Any) -> ArrowQuantError | None:
    """None where the values are right; the error where there is one. Fails for other values and other errors."""
    try:
        found = WAYS[way](target)
    except ArrowQuantError as error:
        return error
    assert found == expected, f"{way} gives other values"
    return None


def check(way: str, target: Path, file: Path, place: int, bit: int, expected: Any) -> bool:
    """Whether the bit was found; where it was, the error says where."""
    where = f"{way}, {file.relative_to(target)}, byte {place}, bit {bit}"
    with flipped(file, place, bit):
        try:
            error = outcome(way, target, expected)
        except Exception as other:
            raise AssertionError(where) from other
    if error is None:
        return False
    assert error.uri is not None, where
    named = Path(error.uri.removeprefix("file://"))
    if file.name == "manifest.json":
        # Of what it says of another file nobody knows which of the two is damaged: the error names both.
        assert isinstance(error, (*Damaged, IncompleteDataset)), f"{where}: {error!r}"
        assert named == file or (named.is_relative_to(target) and "the manifest" in str(error)), (
            f"{where}: {error}"
        )
    else:
        assert isinstance(error, Damaged), f"{where}: {error!r}"
        assert named == file, f"{where}: {error}"
    if "weights" in file.parts and (target / "index.parquet").exists():
        assert error.layer == layers_at(file, target / "index.parquet")[place], f"{where}: {error}"
    return True


def places(file: Path, count: int) -> list[tuple[int, int]]:
    """Some (byte, bit) of a file, the same each time. count: 0 for a bit of every byte."""
    size = file.stat().st_size
    chosen = random.Random(file.name.partition("-")[0])  # noqa: S311
    found = {chosen.randrange(size) for _ in range(count)} if count else range(size)
    return [(place, chosen.randrange(8)) for place in sorted(found)]


def sweep(way: str, target: Path, intact: Path, counts: tuple[int, int], share: slice = slice(None)) -> None:
    """counts: places in Parquet files and in each of the others, as `places` takes them. share: which of these."""
    expected, found = right(way, intact), 0
    for file in files_of(target):
        name = file.relative_to(target).as_posix()
        is_parquet = name.endswith(".parquet")
        if name.startswith(UNREAD) or (way in OF_WEIGHTS and not is_parquet and name != "manifest.json"):
            continue
        for place, bit in places(file, counts[0] if is_parquet else counts[1])[share]:
            found += check(way, target, file, place, bit, expected)
    assert found, f"{way} found nothing"


@pytest.mark.parametrize("way", OF_WEIGHTS)
def test_a_bit_of_a_dataset_is_found_by_every_way_of_reading_weights(
    target: Path, intact: Path, way: str
) -> None:
    sweep(way, target, intact, (4, 4))


@pytest.mark.parametrize("intact", ["zstd"], indirect=True)
@pytest.mark.parametrize("way", OF_MODELS)
def test_a_bit_of_a_dataset_is_found_by_every_way_of_loading_models(
    target: Path, intact: Path, way: str
) -> None:
    sweep(way, target, intact, (1, 1))


@pytest.mark.parametrize("way", OF_WEIGHTS)
def test_a_bit_of_a_file_without_an_index_is_found_too(bare: Path, intact: Path, way: str) -> None:
    sweep(way, bare, intact, (6, 0))


def check_a_value(target: Path, intact: Path, way: str, value: str) -> None:
    layer = "encoder.layer.0.output.dense.weight"
    rows = pq.read_table(target / "index.parquet").to_pylist()
    row = next(row for row in rows if row["layer_name"] == layer)
    place = row[f"{value}_offset"] + row[f"{value}_stored_nbytes"] // 2
    assert check(way, target, target / row["part"], place, 3, right(way, intact))


@pytest.mark.parametrize("value", ["data", "scales", "zero_points", "chunk_digests"])
@pytest.mark.parametrize("way", OF_WEIGHTS)
def test_every_value_of_a_layer_is_verified(target: Path, intact: Path, way: str, value: str) -> None:
    check_a_value(target, intact, way, value)


@pytest.mark.parametrize("intact", ["none"], indirect=True)
@pytest.mark.parametrize("value", ["data", "scales"])
@pytest.mark.parametrize("way", [way for way in OF_MODELS if way != "load_tokenizer"])
def test_every_value_of_a_model_is_verified(target: Path, intact: Path, way: str, value: str) -> None:
    check_a_value(target, intact, way, value)


@pytest.mark.parametrize("intact", ["none"], indirect=True)
def test_a_number_of_a_config_that_is_as_possible_as_before_is_found(target: Path, intact: Path) -> None:
    file = target / "config.json"
    number = b'"layer_norm_eps": 1e-12'
    place = file.read_bytes().index(number) + len(number) - 1
    for way in ("load_model", "load_model codes", "load_sentence_transformer"):
        assert check(way, target, file, place, 0, right(way, intact))


def test_a_tied_name_that_became_another_is_found(tmp_path: Path) -> None:
    """Each byte of an alias and of the name that it stands for: layers have names of one bit's difference."""
    shared = torch.randn(8, 8)
    state = {f"layers.{index}": torch.randn(8, 8) for index in range(4)}
    torch.save(state | {"tied.0": shared, "tied.1": shared}, tmp_path / "model.bin")
    target = tmp_path / "target"
    ArrowQuantizer(QuantizationConfig("int8")).quantize(tmp_path / "model.bin", target)
    ((alias, stored),) = manifest_of(target)["aliases"].items()
    manifest = target / "manifest.json"
    start = manifest.read_bytes().index(json.dumps(alias).encode())
    expected = OF_WEIGHTS["stream"](target)
    for place in range(start, start + len(alias) + len(stored) + 6):
        assert check("stream", target, manifest, place, place % 8, expected), place


@pytest.mark.parametrize("intact", ["none"], indirect=True)
def test_a_file_that_was_edited_is_taken_where_that_is_said(target: Path) -> None:
    settings = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(settings | {"layer_norm_eps": 1e-3}))
    with pytest.raises(CorruptWeights, match=r"config\.json: .* edited or is damaged; .* verify=False"):
        load_model(target, AutoModel)
    assert load_model(target, AutoModel, verify=False).config.layer_norm_eps == 1e-3
    assert len(load_tokenizer(target, verify=False)) == 10


@pytest.mark.parametrize("intact", ["none"], indirect=True)
def test_files_that_people_read_may_change(target: Path) -> None:
    (target / "README.md").write_text("# Ours")
    load_sentence_transformer(target)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_a_bit_of_every_byte_is_found(target: Path, intact: Path, part: int) -> None:
    """A part of the bytes of each file."""
    sweep("stream", target, intact, (0, 0), slice(part, None, 4))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_bit_of_hundreds_of_bytes_of_each_file_is_found_by_every_way(
    target: Path, intact: Path, way: str
) -> None:
    """Of models' ways 40 bytes of each Parquet file and 10 of each other: a load takes 50 ms."""
    sweep(way, target, intact, (400, 400) if way in OF_WEIGHTS else (40, 10))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stream", "rows"])
def test_a_bit_of_thousands_of_bytes_without_an_index_is_found(bare: Path, intact: Path, way: str) -> None:
    sweep(way, bare, intact, (2000, 0))
