"""If layers are cut for ranks, each rank reads its own rows and hardly anything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from arrowquant_dist import ArrowQuantizer, QuantizationConfig, RunConfig, TensorParallel, WeightLoader
from tests.servers.range_server import RangeServer

HIDDEN, HEADS_OF_KEYS, INNER, WORDS = 512, 128, 1408, 4099  # WORDS: no multiple of any number of ranks
LAYERS = 17
MORE = {"int2": 0.02}  # of all bytes: of codes so small the digests and headers between are more
BETWEEN = {"int2": 1.35}  # of all bytes: what lies between is read along
CONFIGS = {
    "int8": QuantizationConfig("int8"),
    "int8 groups": QuantizationConfig("int8", per_channel=False, group_size=128),
    "int4": QuantizationConfig("int4", per_channel=False, group_size=128, method="rtn"),
    "int4 channels": QuantizationConfig("int4", method="rtn"),
    "int2": QuantizationConfig("int2", per_channel=False, group_size=128, method="rtn"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shapes of a small Llama, 8 million values."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, HIDDEN)}
    for index in range(2):
        block = f"model.layers.{index}"
        for name, shape in {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (HEADS_OF_KEYS, HIDDEN),
            "self_attn.v_proj": (HEADS_OF_KEYS, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
            "input_layernorm": (HIDDEN,),
        }.items():
            shapes[f"{block}.{name}.weight"] = shape
    random = np.random.default_rng(8)
    folder = tmp_path_factory.mktemp("source")
    values = {name: torch.from_numpy(random.standard_normal(shape, "f4")) for name, shape in shapes.items()}
    save_file(values, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module", params=["int8", "int4"])
def targets(request: pytest.FixtureRequest, source: Path) -> tuple[Path, Path, Path]:
    """A dataset that is cut for no ranks; the same cut for eight, uncompressed and compressed."""
    config = CONFIGS[request.param]
    runs = {
        "plain": RunConfig(engine="inline"),
        "none": RunConfig(engine="inline", tensor_parallel=8, compression="none"),
        "zstd": RunConfig(engine="inline", tensor_parallel=8),
    }
    found = {name: source.parent / f"{source.name}-{request.param}-{name}" for name in runs}
    for name, run in runs.items():
        ArrowQuantizer(config, run).quantize(source, found[name])
    return found["plain"], found["none"], found["zstd"]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_rank_asks_for_its_own_rows_and_one_in_a_hundred_of_all_bytes_more(
    targets: tuple[Path, Path, Path], ranks: int
) -> None:
    plain, *cut = targets
    whole = dict(WeightLoader(plain))
    for target in cut:
        with WeightLoader(target) as loader:
            for name, tensor in loader:
                assert tensor.equal(whole[name])
            every = loader.stats.nbytes_read
        for rank in range(ranks):
            with WeightLoader(target) as loader:
                for name, part in loader.stream(parallel=TensorParallel(rank, ranks, 0)):
                    assert part.equal(torch.tensor_split(whole[name], ranks)[rank])
                assert loader.stats.nbytes_read <= (1 / ranks + 0.01) * every


def test_a_layer_alone_costs_a_rank_no_more(targets: tuple[Path, Path, Path]) -> None:
    _, target, _ = targets
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"):
        stored = WeightLoader(target)
        stored.read(name)
        for rank in range(4):
            loader = WeightLoader(target)
            loader.read(name, parallel=TensorParallel(rank, 4, 0))
            assert loader.stats.nbytes_read <= 0.26 * stored.stats.nbytes_read


def asked_of(server: RangeServer, uri: str, parallel: TensorParallel | None) -> tuple[int, int]:
    """(requests, bytes) for all layers."""
    with WeightLoader(uri, storage_options=server.options, transfer={"hedges": 0}) as loader:
        server.asked.clear()
        for _ in loader.stream(parallel=parallel):
            pass
    return len(server.asked), sum(len(one.part) for one in server.asked)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_object_store_is_asked_for_a_ranks_part_in_few_requests(
    source: Path, tmp_path: Path, name: str
) -> None:
    """Cut for eight, or for none: then a rank reads what the layers' chunks and scales are, and never more than all.
    Along dimension 1 every row's bytes are read, in no more requests than for all of the layers."""
    with RangeServer() as server:
        for degree in (8, 1):
            run = RunConfig(engine="inline", compression="none", tensor_parallel=degree)
            ArrowQuantizer(CONFIGS[name], run).quantize(source, tmp_path / f"for{degree}")
            uri = server.put(tmp_path / f"for{degree}")
            every_requests, every_nbytes = asked_of(server, uri, None)
            parts_nbytes = sum(part.stat().st_size for part in tmp_path.glob(f"for{degree}/weights/*/*"))
            for ranks in (2, 4, 8):
                requests, nbytes = asked_of(server, uri, TensorParallel(ranks - 1, ranks, 0))
                assert requests <= 4 * LAYERS
                share = 1 / ranks + MORE.get(name, 0.01) if degree == 8 else 1
                assert nbytes <= share * every_nbytes
                requests, nbytes = asked_of(server, uri, TensorParallel(ranks - 1, ranks, 1))
                assert requests <= max(every_requests, 2 * LAYERS)
                assert nbytes <= BETWEEN.get(name, 1.1) * parts_nbytes
