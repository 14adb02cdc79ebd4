"""Only one block at a time has its weights in memory, however many there are; tests count what is filled."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from arrowquant_dist import QuantizationConfig, RunConfig, calibrate
from arrowquant_dist.calibration import run
from arrowquant_dist.calibration.memory import SharedMemory, Shares
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.models import paths, subject
from arrowquant_dist.models.build import Built, build_model
from arrowquant_dist.models.chain import Chain
from arrowquant_dist.models.units import Unit, passes_of
from tests.evaluation.models import TEXTS, VOCABULARY, save

INT4 = QuantizationConfig("int4", per_channel=False, group_size=16)


def save_deep(folder: Path, blocks: int, **sizes: int) -> Path:
    torch.manual_seed(7)
    small = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": VOCABULARY}
    return save(BertModel(BertConfig(num_hidden_layers=blocks, **{**small, **sizes})), folder)


def held(chain: Chain) -> int:
    """Bytes that the chain's tensors have in memory; one value that stands for all of a tensor is none."""
    storages = {slot.tensor.untyped_storage().data_ptr(): slot.tensor for slot in chain.slots}
    return sum(t.untyped_storage().nbytes() for t in storages.values() if t.untyped_storage().nbytes() > 8)


def most_held(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, config: QuantizationConfig | None
) -> int:
    most, own = 0, Chain.fill

    def counting(self: Chain, part: int) -> None:
        nonlocal most
        own(self, part)
        most = max(most, held(self))

    with monkeypatch.context() as patch:
        patch.setattr(Chain, "fill", counting)
        calibrate(source, out, [*TEXTS[:6]], quantize=config)
    return most


@pytest.mark.parametrize("config", [None, INT4], ids=["one path", "two paths"])
def test_what_is_filled_at_a_time_does_not_grow_with_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: QuantizationConfig | None
) -> None:
    few, many = (
        most_held(save_deep(tmp_path / f"{n}", n), tmp_path / f"out{n}", monkeypatch, config) for n in (2, 6)
    )
    assert few == many
    assert few < 4 * (VOCABULARY + 512) * 32 + 40_000  # the embeddings, which are larger than a block here


def test_a_model_that_is_built_has_no_memory_for_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator would keep room for all blocks, and spread what one needs at a time all over it."""
    sizes: list[int] = []

    def noted(*args: Any) -> Built:
        built = build_model(*args)
        sizes.extend(slot.tensor.untyped_storage().nbytes() for slot in built.slots)
        return built

    monkeypatch.setattr(subject, "build_model", noted)
    calibrate(save_deep(tmp_path / "source", 2), tmp_path / "out", [*TEXTS[:6]])
    assert len(sizes) > 2 * 16
    assert max(sizes) <= 8


def test_an_allocator_is_told_to_keep_nothing_large_and_nothing_from_part_to_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    own = Chain.fill

    def filled(self: Chain, part: int) -> None:
        order.append("weights")
        own(self, part)

    monkeypatch.setattr(Chain, "fill", filled)
    monkeypatch.setattr(run, "give_back_large_memory", lambda: order.append("nothing large"))
    monkeypatch.setattr(paths, "give_back_freed_memory", lambda: order.append("nothing freed"))
    calibrate(save_deep(tmp_path / "source", 1), tmp_path / "out", [*TEXTS[:6]])
    assert order == ["nothing large", *["nothing freed", "weights"] * 3]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.safetensors"))}


def enough(error: InvalidConfig) -> str:
    found = re.search(r"--memory-budget (\d+MiB) is enough", str(error))
    assert found is not None
    return found[1]


@pytest.mark.parametrize("config", [None, INT4], ids=["one path", "two paths"])
def test_a_pass_for_each_sum_makes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: QuantizationConfig | None
) -> None:
    source, run = save_deep(tmp_path / "source", 1), RunConfig(engine="inline", workers=1)
    calibrate(source, tmp_path / "large", [*TEXTS[:6]], quantize=config, run=run)

    def one_each(self: SharedMemory, *args: Any) -> Shares:
        return Shares(passes_of(args[2], 1), 1)

    monkeypatch.setattr(SharedMemory, "shares", one_each)
    calibrate(source, tmp_path / "small", [*TEXTS[:6]], quantize=config, run=run)
    assert contents(tmp_path / "small") == contents(tmp_path / "large")


def test_a_smaller_budget_takes_more_passes_and_makes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As little as the refusals say is enough for each part."""
    source = save_deep(tmp_path / "source", 1, hidden_size=384, intermediate_size=1152)
    passes: list[tuple[int, int]] = []
    own = SharedMemory.shares

    def noted(self: SharedMemory, *args: Any) -> Shares:
        found = own(self, *args)
        sums = max(sum(unit.nbytes for unit in units) for units in found.passes)
        passes.append((len(found.passes), sums))
        return found

    monkeypatch.setattr(SharedMemory, "shares", noted)
    run, texts = RunConfig(engine="inline", workers=1), [*TEXTS[:6]]
    calibrate(source, tmp_path / "large", texts, run=run)
    assert max(count for count, _ in passes) == 1
    largest = 8 * 1152 * 1152
    assert max(sums for _, sums in passes) > largest + (3 << 20)
    passes.clear()
    budget, refused = "1MiB", 0
    while not (tmp_path / "small" / "calibration.json").exists():
        try:
            calibrate(source, tmp_path / "small", texts, run=run, memory_budget=budget)
        except InvalidConfig as error:
            budget, refused = enough(error), refused + 1
    assert 1 <= refused <= 3
    assert max(count for count, _ in passes) > 1
    assert max(sums for _, sums in passes) < largest + (1 << 20)
    assert contents(tmp_path / "small") == contents(tmp_path / "large")


def test_a_budget_that_no_sum_fits_is_refused_with_what_is_enough(tmp_path: Path) -> None:
    source = save_deep(tmp_path / "source", 1)
    with pytest.raises(InvalidConfig, match="of memory at once, but the budget is") as caught:
        calibrate(source, tmp_path / "out", [*TEXTS[:6]], memory_budget="2MiB")
    assert caught.value.exit_code == 2
    calibrate(source, tmp_path / "out", [*TEXTS[:6]], memory_budget="64MiB")


def test_what_quantizing_takes_is_of_the_statistics_that_there_are(tmp_path: Path) -> None:
    """Those that an embedding of 6,000 rows would have if it were a matrix stored [in, out] take 144 MB."""
    source = save_deep(tmp_path / "source", 1, vocab_size=6000)
    out = str(tmp_path / "out")
    config = QuantizationConfig("int4", per_channel=False, group_size=16, method="gptq", hessians=out)
    calibrate(source, out, [*TEXTS[:6]], quantize=config, memory_budget="64MiB")


def test_workers_wait_where_the_budget_has_no_room_for_all_of_them() -> None:
    mib = 1 << 20
    units = [Unit(slot, 0, 1, "hessian", 100 * mib) for slot in range(4)]
    all_of_them = SharedMemory(2000 * mib, 2).shares(100 * mib, 50 * mib, units, "it")
    assert (all_of_them.at_once, len(all_of_them.passes)) == (2, 1)
    some = SharedMemory(700 * mib, 2).shares(100 * mib, 50 * mib, units, "it")
    assert (some.at_once, [len(units) for units in some.passes]) == (2, [2, 2])
    one = SharedMemory(300 * mib, 2).shares(100 * mib, 50 * mib, units, "it")
    assert (one.at_once, [len(units) for units in one.passes]) == (1, [1, 1, 1, 1])
    with pytest.raises(InvalidConfig, match="--memory-budget 266MiB is enough"):
        SharedMemory(265 * mib, 2).shares(100 * mib, 50 * mib, units, "it")


_CHILD = """
import json, sys
from pathlib import Path
from arrowquant_dist import QuantizationConfig, RunConfig, calibrate
source, out, texts = sys.argv[1:4]
config = QuantizationConfig("int4", per_channel=False, group_size=128, method="gptq", hessians=out)
calibrate(source, out, json.loads(texts), quantize=config, run=RunConfig(engine="inline", workers=2))
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_takes_no_more_for_forty_blocks_than_for_four(tmp_path: Path) -> None:
    """Blocks of 3 MB a path: the forty are 250 MB."""
    peaks = []
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8}
    for blocks in (4, 40):
        source = save_deep(tmp_path / f"{blocks}", blocks, **sizes)
        command = [sys.executable, "-c", _CHILD, str(source), str(tmp_path / f"out{blocks}")]
        said = subprocess.run(
            [*command, json.dumps([*TEXTS[:12]])], check=True, capture_output=True, text=True
        )
        peaks.append(int(said.stdout.splitlines()[-1]))
    assert peaks[1] < 1.15 * peaks[0], peaks
