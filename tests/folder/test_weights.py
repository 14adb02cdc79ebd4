"""Which of a folder's weight files are the model, and the note about the others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from arrowquant_dist import QuantizationConfig, RunConfig, WeightLoader
from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.driver.run import quantize
from arrowquant_dist.errors import InvalidCheckpoint
from tests.folder.places import (
    Files,
    Put,
    bin_of,
    index_of,
    json_of,
    notes_of,
    pickled,
    put_local,
    safetensors_of,
    values_of,
)

MODEL, OTHER = 1.0, 9.0
NUMBERED = "model-0000{}-of-00002.safetensors"
ADAPTER_NAMES = ["base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"]
ADAPTER = safetensors_of(*ADAPTER_NAMES, value=OTHER)
COPY = safetensors_of("a", "b", value=OTHER)


def numbered(count: int = 2, stem: str = "model", value: float = MODEL) -> dict[str, bytes]:
    return {
        f"{stem}-{i:05d}-of-{count:05d}.safetensors": safetensors_of("ab"[i - 1], value=value)
        for i in range(1, count + 1)
    }


MODELS: dict[str, dict[str, bytes]] = {
    "safetensors": {"model.safetensors": safetensors_of("a", "b")},
    "pytorch": {"pytorch_model.bin": bin_of("a", "b")},
    "numbered": numbered(),
    "indexed": {
        **numbered(),
        "model.safetensors.index.json": index_of(a=NUMBERED.format(1), b=NUMBERED.format(2)),
    },
    "another name": {"weights.pth": bin_of("a", "b")},
}
BESIDE: dict[str, tuple[Files, str]] = {
    "adapter": (
        {"adapter_model.safetensors": ADAPTER, "adapter_config.json": b"{}"},
        "an adapter beside them was left out: adapter_model.safetensors",
    ),
    "adapter as pickle": (
        {"adapter_model.bin": bin_of(*ADAPTER_NAMES)},
        "an adapter .* left out: adapter_model.bin",
    ),
    "mlx adapter": ({"adapters.safetensors": ADAPTER}, "an adapter .* left out: adapters.safetensors"),
    "diffusers adapter": ({"pytorch_lora_weights.safetensors": ADAPTER}, "pytorch_lora_weights.safetensors"),
    "named adapter": ({"my-style_lora.safetensors": ADAPTER}, "left out: my-style_lora.safetensors"),
    "optimizer": (
        {"optimizer.pt": b"junk", "scheduler.pt": b"junk"},
        "trainer's state .*: optimizer.pt, sch",
    ),
    "optimizer as safetensors": ({"optimizer.safetensors": COPY}, "left out: optimizer.safetensors"),
    "rng and arguments": (
        {"rng_state_0.pth": b"junk", "training_args.bin": b"junk", "scaler.pt": b"junk"},
        "left out: rng_state_0.pth, scaler.pt, training_args.bin",
    ),
    "half precision": ({"model.fp16.safetensors": COPY}, "left out: .*model.fp16.safetensors"),
    "half precision in two": (
        {
            "model.fp16-00001-of-00002.safetensors": safetensors_of("a", value=OTHER),
            "model.fp16-00002-of-00002.safetensors": safetensors_of("b", value=OTHER),
            "model.safetensors.index.fp16.json": index_of(
                a="model.fp16-00001-of-00002.safetensors", b="model.fp16-00002-of-00002.safetensors"
            ),
        },
        "left out: .*model.fp16-00001-of-00002.safetensors",
    ),
    "makers' names": (
        {"consolidated.safetensors": safetensors_of("x", "y", value=OTHER), "params.json": b"{}"},
        "left out: .*consolidated.safetensors",
    ),
    "makers' names in two": (
        {
            "consolidated-00001-of-00002.safetensors": safetensors_of("x", value=OTHER),
            "consolidated-00002-of-00002.safetensors": safetensors_of("y", value=OTHER),
        },
        "left out: .*consolidated-00001-of-00002.safetensors",
    ),
    "makers' pickle": ({"consolidated.00.pth": bin_of("x", value=OTHER)}, "left out: .*consolidated.00.pth"),
    "averaged": ({"model_ema.safetensors": COPY}, "left out: .*model_ema.safetensors"),
    "averaged pickle": ({"ema.pt": bin_of("a", value=OTHER)}, "left out: .*ema.pt"),
    "head": ({"value_head.bin": bin_of("v", value=OTHER)}, "left out: .*value_head.bin"),
    "projector": ({"mm_projector.bin": bin_of("p", value=OTHER)}, "left out: .*mm_projector.bin"),
    "vae": ({"vae.safetensors": safetensors_of("v", value=OTHER)}, "left out: .*vae.safetensors"),
    "other frameworks": (
        {"tf_model.h5": b"x", "flax_model.msgpack": b"x", "rust_model.ot": b"x", "model.onnx": b"x"},
        "left out: .*flax_model.msgpack, model.onnx, .*",
    ),
    "openvino": ({"openvino_model.bin": b"x", "openvino_model.xml": b"x"}, "openvino_model.bin"),
    "below": (
        {
            "onnx/model.onnx": b"x",
            "original/consolidated.00.pth": b"x",
            "checkpoint-5/model.safetensors": COPY,
        },
        "no config here names were left out: checkpoint-5, onnx, original",
    ),
    "hidden": ({"._model.safetensors": b"\0\5\26\7", ".cache/x/model.safetensors": COPY}, "^$"),
    "unpacked on a Mac": ({"__MACOSX/._model.safetensors": b"\0", "__MACOSX/model.safetensors": COPY}, "^$"),
}


@pytest.mark.parametrize(("files", "note"), BESIDE.values(), ids=BESIDE.keys())
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_the_model_is_taken_and_what_lies_beside_it_is_named(
    put: Put, model: Files, files: Files, note: str
) -> None:
    uri = put({**files, **model})
    assert values_of(uri) == {"a": MODEL, "b": MODEL}
    assert re.search(note, notes_of(uri)), notes_of(uri)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "consolidated.safetensors", "ema.safetensors"])
def test_a_second_form_is_taken_where_it_is_all_there_is(put: Put, name: str) -> None:
    uri = put({name: COPY, "optimizer.pt": b"junk"})
    assert values_of(uri) == {"a": OTHER, "b": OTHER}


def test_pytorch_s_whole_model_beats_a_variant_in_safetensors(put: Put) -> None:
    uri = put({"pytorch_model.bin": bin_of("a", "b"), "model.fp16.safetensors": COPY})
    assert values_of(uri) == {"a": MODEL, "b": MODEL}
    assert "model.fp16.safetensors" in notes_of(uri)


@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.safetensors",
        "adapter.safetensors",
        "adapters.safetensors",
        "pytorch_lora_weights.safetensors",
        "style_lora.safetensors",
        "anything.safetensors",
        "model.safetensors",
    ],
)
def test_an_adapter_alone_is_refused_and_says_what_it_belongs_to(put: Put, name: str) -> None:
    config = json_of({"base_model_name_or_path": "org/base-7b", "peft_type": "LORA"})
    uri = put({name: ADAPTER, "adapter_config.json": config, "training_args.bin": b"junk"})
    for source in (uri, f"{uri}/{name}"):
        with pytest.raises(InvalidCheckpoint, match=r"this is an adapter .*'org/base-7b'.*merge_and_unload"):
            open_checkpoint(source)


@pytest.mark.parametrize(
    "names",
    [
        ["lora_unet_down.lora_down.weight", "lora_unet_down.lora_up.weight", "lora_unet_down.alpha"],
        ["lycoris_layers_0.hada_w1_a", "lycoris_layers_0.hada_w1_b", "lycoris_layers_0.alpha"],
        ["lycoris_layers_0.lokr_w1", "lycoris_layers_0.lokr_w2_a"],
        ["unet.down.attn.to_q.lora.down.weight", "unet.down.attn.to_q.lora.up.weight"],
        ["model.layers.0.self_attn.q_proj.lora_a", "model.layers.0.self_attn.q_proj.lora_b"],
        ["base_model.model.score.weight", "base_model.model.q.lora_A.weight"],
        ["prompt_embeddings"],
        ["blocks.0.processor.qkv_lora1.down.weight", "blocks.0.processor.proj_lora2.up.weight"],
        ["text_model.q.lora_linear_layer.down.weight", "text_model.q.lora_linear_layer.up.weight"],
        ["emb_params"],
    ],
)
def test_an_adapter_is_known_by_its_tensors(put: Put, names: list[str]) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"this is an adapter .*the model that it was trained on"):
        open_checkpoint(put({"pytorch_model.bin": bin_of(*names)}))


def test_a_model_that_holds_an_unmerged_adapter_is_none(put: Put) -> None:
    names = ["model.q.base_layer.weight", "model.q.lora_A.default.weight", "embed.weight"]
    assert set(values_of(put({"model.safetensors": safetensors_of(*names)}))) == set(names)


def test_folders_of_adapters_alone_are_refused(put: Put) -> None:
    config = json_of({"base_model_name_or_path": "org/base"})
    files = {f"{task}/{name}": data for task in ("sql", "chat") for name, data in
             {"adapter_model.safetensors": ADAPTER, "adapter_config.json": config}.items()}  # fmt: skip
    with pytest.raises(InvalidCheckpoint, match=r"adapter \(chat/adapter_model.safetensors, sql.*'org/base'"):
        open_checkpoint(put(files))


def test_folders_that_nothing_names_are_listed_where_nothing_is_at_the_top(put: Put) -> None:
    with pytest.raises(InvalidCheckpoint, match="use one of these folders: step-1/, step-2/"):
        open_checkpoint(put({"step-1/model.safetensors": COPY, "step-2/pytorch_model.bin": b"x"}))


def test_numbered_files_are_taken_and_whole_ones_of_other_names_left_out(put: Put) -> None:
    uri = put({**numbered(stem="llama"), "other.safetensors": COPY})
    assert values_of(uri) == {"a": MODEL, "b": MODEL}
    assert "left out: other.safetensors" in notes_of(uri)


def test_the_usual_name_beats_numbered_files(put: Put) -> None:
    uri = put({**numbered(value=OTHER), "model.safetensors": safetensors_of("a", "b")})
    assert values_of(uri) == {"a": MODEL, "b": MODEL}
    assert re.search("left out: model-00001-of-00002.*", notes_of(uri))


def test_of_two_numbered_sets_the_complete_one_is_taken(put: Put) -> None:
    broken = dict.fromkeys(("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"), COPY)
    uri = put({**broken, **numbered()})
    assert values_of(uri) == {"a": MODEL, "b": MODEL}
    assert "left out: model-00001-of-00003.safetensors, model-00003-of-00003.safetensors" in notes_of(uri)


@pytest.mark.parametrize("stem", ["model", "other"])
def test_two_complete_numbered_sets_are_refused(put: Put, stem: str) -> None:
    files = {**numbered(1, stem=stem, value=OTHER), **numbered(2, stem="x" if stem == "other" else stem)}
    with pytest.raises(InvalidCheckpoint, match="several complete sets of numbered files"):
        open_checkpoint(put(files))


def test_an_index_beats_another_numbered_set(put: Put) -> None:
    uri = put({**MODELS["indexed"], **numbered(1, value=OTHER)})
    assert values_of(uri) == {"a": MODEL, "b": MODEL}
    assert "left out: model-00001-of-00001.safetensors" in notes_of(uri)


def test_an_index_whose_files_are_gone_gives_way_to_a_whole_model(put: Put) -> None:
    uri = put({"model.safetensors": safetensors_of("a"), "model.safetensors.index.json": index_of(a="gone")})
    assert values_of(uri) == {"a": MODEL}


STALE = {
    "model.safetensors.index.json": index_of(a="model-00001-of-00002.safetensors", b="model-2.safetensors")
}


@pytest.mark.parametrize(
    "files",
    [
        {"output.safetensors": safetensors_of("a")},
        {"pytorch_model.bin": bin_of("a")},
        {
            "output-00001-of-00002.safetensors": safetensors_of("a"),
            "output-00002-of-00002.safetensors": safetensors_of("b"),
        },
        numbered(stem="pytorch_model"),
        {
            "pytorch_model.bin.index.json": index_of(a="pytorch_model-1.bin"),
            "pytorch_model-1.bin": bin_of("a"),
        },
    ],
    ids=["quantized", "another kind", "quantized and numbered", "numbered", "another index"],
)
def test_an_index_that_was_copied_along_without_its_files_gives_way_to_the_model(
    put: Put, files: Files
) -> None:
    uri = put({**STALE, **files})
    assert set(values_of(uri).values()) == {MODEL}
    assert len(values_of(uri)) == len([name for name in files if not name.endswith(".json")])
    if not any(name.endswith(".json") for name in files):
        assert "not used: model.safetensors.index.json, which names other files" in notes_of(uri)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"mm_projector.safetensors": COPY},
        {"model.fp16.safetensors": COPY},
        {"consolidated.safetensors": COPY},
        {"adapter_model.safetensors": ADAPTER},
        {"pytorch_model.bin.index.json": index_of(a="gone.bin")},
        {"model-2.safetensors": safetensors_of("b"), "pytorch_model.bin": bin_of("a")},
    ],
)
def test_an_index_without_its_files_is_an_error_where_nothing_else_is_the_model(
    put: Put, files: Files
) -> None:
    with pytest.raises(
        InvalidCheckpoint, match=r"of the 2 files it names (is|are) missing: model-00001-of-00002"
    ):
        open_checkpoint(put({**STALE, **files}))


@pytest.mark.parametrize(
    "names",
    [
        ["consolidated.00.pth", "consolidated.01.pth"],
        ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"],
        ["rank0.safetensors", "rank1.safetensors"],
        [
            "model-rank-0-part-0.safetensors",
            "model-rank-0-part-1.safetensors",
            "model-rank-1-part-0.safetensors",
        ],
        ["mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"],
    ],
)
def test_tensor_parallel_slices_are_refused(put: Put, names: list[str]) -> None:
    with pytest.raises(
        InvalidCheckpoint, match=r"each of .* has a slice of every tensor.*convert them to one"
    ):
        open_checkpoint(put(dict.fromkeys(names, bin_of("a"))))


def test_parts_of_one_rank_are_the_whole_model(put: Put) -> None:
    uri = put({f"model-rank-0-part-{i}.safetensors": safetensors_of("ab"[i]) for i in range(2)})
    assert values_of(uri) == {"a": MODEL, "b": MODEL}


def test_files_that_are_one_checkpoint_by_their_names_alone_are_told(put: Put) -> None:
    uri = put({"x.safetensors": safetensors_of("a"), "y.safetensors": safetensors_of("b")})
    assert notes_of(uri) == "the weights are x.safetensors, y.safetensors together"


def test_the_copy_that_an_index_names_counts(put: Put) -> None:
    uri = put(
        {
            "new.safetensors": safetensors_of("a", "b"),
            "old.safetensors": safetensors_of("a", "c", "more", value=OTHER),
            "model.safetensors.index.json": index_of(
                a="new.safetensors", b="./new.safetensors", c="old.safetensors"
            ),
        }
    )
    assert values_of(uri) == {"a": MODEL, "b": MODEL, "c": OTHER, "more": OTHER}
    assert "in several files, and read from the one that model.safetensors.index.json names: a" in notes_of(
        uri
    )
    assert values_of(f"{uri}/model.safetensors.index.json") == values_of(uri)


def test_the_copy_that_an_index_names_counts_among_tied_tensors_too(put: Put) -> None:
    import torch

    old = torch.full((2, 2), OTHER)
    uri = put(
        {
            "new.bin": bin_of("a"),
            "old.bin": pickled({"a": old, "tied": old, "also": old}),
            "pytorch_model.bin.index.json": index_of(a="new.bin", tied="old.bin"),
        }
    )
    assert values_of(uri) == {"a": MODEL, "tied": OTHER, "also": OTHER}


def test_a_tensor_in_another_file_than_the_index_says_is_refused(put: Put) -> None:
    files = {
        "x.safetensors": safetensors_of("a"),
        "y.safetensors": safetensors_of("b"),
        "model.safetensors.index.json": index_of(a="y.safetensors", b="x.safetensors"),
    }
    with pytest.raises(
        InvalidCheckpoint, match="2 tensors are not in the files that it names, but in others: a, b"
    ):
        open_checkpoint(put(files))


def test_a_name_that_no_index_has_may_not_be_in_two_files(put: Put) -> None:
    files = {
        "x.safetensors": safetensors_of("a", "extra"),
        "y.safetensors": safetensors_of("b", "extra"),
        "model.safetensors.index.json": index_of(a="x.safetensors", b="y.safetensors"),
    }
    with pytest.raises(InvalidCheckpoint, match="also in"):
        open_checkpoint(put(files))


@pytest.mark.parametrize(
    "beside",
    [
        {"adapter_model.safetensors": ADAPTER, "adapter_config.json": b"{}"},
        {"consolidated.safetensors": safetensors_of("x", "y", value=OTHER)},
    ],
    ids=["adapter", "makers' names"],
)
@pytest.mark.parametrize("model", [MODELS["pytorch"], MODELS["numbered"]], ids=["pytorch", "numbered"])
def test_the_dataset_has_the_model_once(tmp_path: Path, model: Files, beside: Files) -> None:
    source, target = put_local(tmp_path / "model", {**model, **beside}), str(tmp_path / "out")
    report = quantize(source, target, QuantizationConfig(), RunConfig(engine="inline")).report
    assert any("left out" in note for note in report.notes)
    loader = WeightLoader(target)
    assert {name: float(tensor.mean()) for name, tensor in loader} == {"a": MODEL, "b": MODEL}
    assert not (tmp_path / "out/adapter_config.json").exists()
