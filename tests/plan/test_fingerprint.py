"""What makes two plans the same, and what a plan shows."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_dist.checkpoint.table import Checkpoint, SourceFile
from arrowquant_dist.config import QuantizationConfig, RunConfig
from arrowquant_dist.plan import Plan, differences, is_same_work, make_plan
from arrowquant_dist.plan.differences import OTHER_CODE
from arrowquant_dist.plan.fingerprint import fingerprint
from tests.plan.plan_bytes import read_again, written
from tests.plan.plan_sources import CONFIGS, RUNS, checkpoint, checkpoints, of_layers, raw_layers

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
INT8, RUN = QuantizationConfig(), RunConfig()


@settings(max_examples=60)
@given(checkpoints(), CONFIGS, RUNS, st.randoms(use_true_random=False))
def test_a_plan_depends_on_neither_engine_nor_workers_nor_the_order_of_raw_layers(
    source: Checkpoint, config: QuantizationConfig, run: RunConfig, order: random.Random
) -> None:
    layers = [layer for layer in source.layers if layer.num_params]  # empty ones share an offset
    source = replace(source, layers=tuple(layers), aliases={})
    if not layers:
        return
    order.shuffle(layers)
    other = replace(run, engine="ray", address="ray://head:10001", workers=7, storage_options={"key": "k"})
    shuffled = make_plan(replace(source, layers=tuple(layers)), config, other)
    plan = make_plan(source, config, run)
    assert plan == shuffled
    assert differences(plan, shuffled) == []


BASE = checkpoint({"a": (2000, 300), "b": (2000, 300), "c": (8,)}, aliases={"tied": "a"})


def _touched(file: SourceFile) -> SourceFile:
    return replace(file, version="v2")


@pytest.mark.parametrize(
    ("source", "config", "run", "line"),
    [
        (BASE, INT8.replace(quant_type="int4"), RUN, "quant_type: was 'int8', is 'int4'"),
        (BASE, INT8, RunConfig(compression="none"), "run.compression: was 'zstd', is 'none'"),
        (BASE, INT8, RunConfig(block_bytes=MIB), f"run.block_bytes: was {64 * MIB}, is {MIB}"),
        (BASE, INT8, RunConfig(tensor_parallel=4), "run.tensor_parallel: was None, is 4"),
        (BASE, INT8, RunConfig(shard_bytes=MIB), f"run.shard_bytes: was {512 * MIB}, is {MIB}"),
        (
            replace(BASE, files=tuple(map(_touched, BASE.files))),
            INT8,
            RUN,
            f"source file changed: {BASE.files[0].uri} (ETag or version)",
        ),
        (replace(BASE, aliases={}), INT8, RUN, "alias gone: tied"),
        (checkpoint({"a": (2000, 300), "b": (2000, 300)}, aliases={"tied": "a"}), INT8, RUN, "layer gone: c"),
        (checkpoint({"a": (300, 2000), "b": (2000, 300), "c": (8,), "d": ()}), INT8, RUN, "layer changed: a"),
    ],
)
def test_another_source_or_config_is_another_plan_and_says_what_changed(
    source: Checkpoint, config: QuantizationConfig, run: RunConfig, line: str
) -> None:
    before, now = make_plan(BASE, INT8, RUN), make_plan(source, config, run)
    assert before.fingerprint != now.fingerprint
    assert line in differences(before, now)


def test_settings_that_change_no_byte_keep_the_fingerprint() -> None:
    before = make_plan(BASE, INT8, RUN)
    run = RUN.replace(direct_writes="never")
    now = make_plan(BASE, INT8.replace(group_size=32, mixed_precision_layers=["nothing"]), run)
    assert before.fingerprint == now.fingerprint


def test_a_plan_that_cuts_for_no_ranks_is_that_of_releases_before() -> None:
    before, now = make_plan(BASE, INT8, RUN), make_plan(BASE, INT8, RunConfig(tensor_parallel=1))
    assert before.fingerprint == now.fingerprint
    assert set(now.config["run"]) == {"block_bytes", "shard_bytes", "compression"}


def test_the_fingerprint_is_the_same_on_every_machine() -> None:
    """Pinned: a change here means that a finished dataset is no longer known to be what was asked for; raise
    PLAN_VERSION with it."""
    plan = make_plan(BASE, INT8, RUN)
    made = fingerprint(
        plan.shards, plan.aliases, plan.source["files"], plan.compression, code="", side_inputs={}
    )
    assert made == "xxh3_128:6fb1ed52b190c797aa29c6520739349c"


def test_other_code_is_another_plan_of_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_plan(BASE, INT8, RUN)
    monkeypatch.setattr("arrowquant_dist.plan.make.code_digest", lambda: "0123456789abcdef")
    now, other = make_plan(BASE, INT8, RUN), make_plan(BASE, INT8.replace(quant_type="int4"), RUN)
    assert now.code == "0123456789abcdef"
    assert before.fingerprint != now.fingerprint
    assert differences(before, now) == [OTHER_CODE]
    assert is_same_work(before, now)
    assert not is_same_work(before, other)
    assert differences(before, other)[:2] == [OTHER_CODE, "quant_type: was 'int8', is 'int4'"]


def test_a_plan_shows_no_credentials() -> None:
    layers = raw_layers([("x", (4, 4), "float32")], "s3://key:hunter2@bucket/a.safetensors?sig=hunter2")
    source = replace(of_layers(layers), uri="s3://key:hunter2@bucket/?sig=hunter2")
    run = RunConfig(storage_options={"secret": "hunter2"})
    plan = make_plan(source, INT8.replace(hessians="s3://k:hunter2@b/h"), run)
    assert b"hunter2" not in written(plan)
    assert "hunter2" not in repr((plan.source, plan.config, plan.notes))
    clean = replace(
        source, uri="s3://bucket/", layers=tuple(replace(x, uri="s3://bucket/a.safetensors") for x in layers)
    )
    clean = replace(clean, files=of_layers(clean.layers).files)
    assert make_plan(clean, INT8, RUN).fingerprint == plan.fingerprint


LOCAL = replace(
    BASE,
    files=tuple(SourceFile(file.uri, file.nbytes, "17-80-19-4") for file in BASE.files),
    sidecar_files=(SourceFile("/models/config.json", 5, "3-5-4-6"),),
)


def of_version_2(plan: Plan) -> Plan:
    """As releases before wrote it: mtime and size of each file, and none of the sidecars."""
    source = {name: value for name, value in plan.source.items() if name != "sidecars"}
    files = [{**file, "version": "-".join(file["version"].split("-")[:2])} for file in source["files"]]
    made = fingerprint(
        plan.shards, plan.aliases, files, plan.compression, plan.code, side_inputs={}, version=2
    )
    return replace(plan, source={**source, "files": files}, fingerprint=made, version=2)


def test_a_plan_of_version_2_is_read_and_compared_by_what_it_knows_of_its_source() -> None:
    now = make_plan(LOCAL, INT8, RUN)
    before = read_again(written(of_version_2(now)))
    assert before.version == 2
    assert before.fingerprint != now.fingerprint
    assert is_same_work(before, now)
    assert differences(before, now) == []
    touched = replace(LOCAL, files=tuple(replace(file, version="18-80-20-4") for file in LOCAL.files))
    other = make_plan(touched, INT8, RUN)
    assert not is_same_work(before, other)
    assert differences(before, other) == [f"source file changed: {LOCAL.files[0].uri} (mtime)"]
    assert not is_same_work(before, make_plan(LOCAL, INT8.replace(quant_type="int4"), RUN))


def test_every_file_of_the_source_is_in_the_fingerprint() -> None:
    before = make_plan(LOCAL, INT8, RUN)
    for changed, line in (
        (replace(LOCAL, files=tuple(replace(f, version="17-80-19-5") for f in LOCAL.files)), "inode"),
        (replace(LOCAL, files=tuple(replace(f, version="17-80-20-4") for f in LOCAL.files)), "ctime"),
        (replace(LOCAL, sidecar_files=(SourceFile("/models/config.json", 6, "3-6-4-6"),)), "size"),
    ):
        now = make_plan(changed, INT8, RUN)
        assert now.fingerprint != before.fingerprint
        assert not is_same_work(before, now)
        [found] = differences(before, now)
        assert found.endswith(f"({line})")
