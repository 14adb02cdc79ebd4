"""The files in configs/ are complete and valid, and give MiniLM the sizes that their comments promise."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from arrowquant_dist.checkpoint.open import open_checkpoint
from arrowquant_dist.config import (
    LayerOverride,
    QuantizationConfig,
    RunConfig,
    SpecResolver,
    Transfer,
    load_config,
    parse_config,
)
from arrowquant_dist.driver import quantize
from arrowquant_dist.plan import PlanSummary, make_plan, summarize
from tests.plan.plan_sources import raw_layers

FOLDER = Path(__file__).parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))
NAMES = [file.stem for file in FILES]


def _summary(name: str) -> PlanSummary:
    config, run = load_config(FOLDER / f"{name}.yaml")
    return summarize(make_plan(open_checkpoint("minilm"), config, run), "out", run)


def test_there_is_one_for_each_documented_setup() -> None:
    assert set(NAMES) == {
        "int8",
        "int4",
        "int4-gptq",
        "int3",
        "minilm-2bit",
        "int2",
        "int2-asymmetric",
        "mixed",
        "gguf-q4",
        "vllm-w4a16",
        "vllm-w8a8",
    }


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_file_is_complete_and_every_setting_has_its_comment(file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    types = {"size"} if "size" in values else {"quant_type", "per_channel", "symmetric"}
    assert types | {"mixed_precision_layers", "overrides", "run"} <= set(values)
    assert set(values) <= {f.name for f in fields(QuantizationConfig)} | {"run"}
    assert {"block_bytes", "shard_bytes", "compression"} == set(values["run"])
    assert file.read_text().startswith("# ")
    assert max(map(len, file.read_text().splitlines())) <= 80  # what `config show` prints fits a terminal


def test_the_guide_s_config_is_valid_and_has_every_key() -> None:
    text = (FOLDER / "README.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    parse_config(block.encode())
    keys = {f.name for kind in (QuantizationConfig, RunConfig, Transfer, LayerOverride) for f in fields(kind)}
    on_the_command_line = {"overwrite", "repair"}
    missing = {key for key in keys - on_the_command_line if not re.search(rf"\b{key}\b", block)}
    assert missing == set()


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_the_run_section_spells_out_the_defaults(file: Path) -> None:
    assert load_config(file)[1] == RunConfig()


@pytest.mark.parametrize("name", ["int8", "int4", "int2", "int2-asymmetric"])
def test_all_layers_of_minilm_with_two_dimensions_are_quantized(name: str) -> None:
    summary = _summary(name)
    assert summary.kept_matrices == ()
    assert summary.quantized_layers == 40
    assert set(summary.kept_reasons) == {"1-D", "integer dtype int64"}
    assert summary.notes == ()


def test_mixed_keeps_the_embeddings_and_notes_that_there_is_no_head() -> None:
    summary = _summary("mixed")
    kept = {layer.layer_name for layer in summary.kept_matrices}
    assert kept == {f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")}
    assert {layer.quant_type for layer in summary.kept_matrices} == {"fp16"}
    assert summary.notes == ("mixed_precision_layers: 'lm_head' matches no layer",)


@pytest.mark.parametrize(
    ("name", "times_smaller"), [("int8", 1.97), ("int4", 3.5), ("int2", 6.9), ("int2-asymmetric", 6.2)]
)
def test_minilm_is_as_much_smaller_than_fp16_as_the_comments_say(name: str, times_smaller: float) -> None:
    """Before compression, which int8's 2.15 needs."""
    summary = _summary(name)
    assert 2 * summary.params / summary.expected_nbytes > times_smaller


@pytest.mark.parametrize(
    "name",
    ["int8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("int4", "int2", "int2-asymmetric"))],
)
def test_minilm_is_stored_in_what_the_comment_and_the_readme_say(name: str, tmp_path: Path) -> None:
    said = re.search(
        r"stored\s(?:#\s)?in ([\d.]+ MB), ([\d.]+×) smaller than fp16", (FOLDER / f"{name}.yaml").read_text()
    )
    assert said is not None
    row = re.search(
        rf"^\| `{name}.yaml` \| (.*?) \| (.*?) \|", (FOLDER.parent / "README.md").read_text(), re.MULTILINE
    )
    assert row is not None
    assert said.groups() == row.groups()
    config, run = load_config(name)
    stored = quantize(
        "minilm", str(tmp_path / "out"), config, run.replace(engine="inline")
    ).report.totals.parts_nbytes
    assert f"{stored / 1e6:#.3g} MB" == said[1]


@pytest.mark.parametrize(("quant_type", "method"), [("int8", "rtn"), ("int4", "mse"), ("int2", "mse")])
def test_another_type_on_the_command_line_gets_its_own_method(quant_type: str, method: str) -> None:
    config = load_config(FOLDER / "int8.yaml")[0].replace(quant_type=quant_type)
    assert config.spec().method == method


def test_minilm_is_shared_by_two_workers() -> None:
    config, run = load_config(FOLDER / "int8.yaml")
    sizes = sorted(shard.source_nbytes for shard in make_plan(open_checkpoint("minilm"), config, run).shards)
    assert sizes[-1] < 1.15 * sum(sizes[:-1])
    assert (
        summarize(make_plan(open_checkpoint("minilm"), config, run), "out", run).worker_memory_nbytes
        < 1 << 30
    )


def test_gguf_has_groups_of_its_blocks_and_eight_bits_for_the_embeddings() -> None:
    config, run = load_config(FOLDER / "gguf-q4.yaml")
    plan = make_plan(open_checkpoint("minilm"), config, run)
    specs = {block.layer.name: block.spec for block in plan.blocks}
    words = specs.pop("embeddings.word_embeddings.weight")
    assert (words.quant_type, words.group_size, words.symmetric, words.method) == ("int8", 32, True, "mse")
    others = {spec.quant_type for name, spec in specs.items() if name.endswith("dense.weight")}
    assert others == {"int4"}
    assert {spec.group_size for spec in specs.values() if spec.is_quantized} == {32}


@pytest.mark.parametrize("name", ["vllm-w4a16", "vllm-w8a8"])
def test_what_vllm_does_not_load_quantized_is_kept_by_its_configs(name: str) -> None:
    config, _ = load_config(FOLDER / f"{name}.yaml")
    block = "model.layers.0.mlp"
    shapes = {
        "model.embed_tokens.weight": (64, 128),
        "lm_head.weight": (64, 128),
        "transformer.wte.weight": (64, 128),
        "shared.weight": (64, 128),
        f"{block}.gate.weight": (4, 128),
        f"{block}.experts.0.up_proj.weight": (64, 128),
        f"{block}.shared_experts.up_proj.weight": (64, 128),
        "model.layers.0.self_attn.q_proj.weight": (64, 128),
    }
    layers = raw_layers([(name, shape, "bfloat16") for name, shape in shapes.items()], "/x.safetensors")
    resolver = SpecResolver(config, layers)
    specs = {layer.name: resolver.resolve(layer.name, layer.shape, layer.dtype).spec for layer in layers}
    assert [name for name, spec in specs.items() if spec.is_quantized] == list(shapes)[-3:]
    assert {spec.scale_dtype for spec in specs.values() if spec.is_quantized} == {"bfloat16"}
    assert {(spec.stored_group_size, spec.symmetric) for spec in specs.values() if spec.is_quantized} == {
        (128 if name == "vllm-w4a16" else 0, True)
    }
