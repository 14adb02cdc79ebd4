"""report.json, manifest.json, commits and run/plan.arrow with any change: one error, or they are read and shown."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from arrowquant_dist.errors import ArrowQuantError, CorruptWeights, InvalidCheckpoint
from arrowquant_dist.plan import plan_from_table
from arrowquant_dist.report.render import load_report, render
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.target.commit import read_commit
from arrowquant_dist.target.manifest import Manifest, hash_of
from arrowquant_dist.target.plan_file import PlannedRun, plan_file, read_plan_file
from tests.conftest import CHECKOUT
from tests.fuzz.bounded import arrowquant
from tests.fuzz.mutations import mutated

STORED = CHECKOUT / "tests" / "versions" / "report-2"
DEEP = b"[" * 200_000 + b"]" * 200_000


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return shutil.copytree(STORED, tmp_path / "target")


# Of a value there are 14 or 15 changes: every fourth is each of them for a quarter of the values.
@pytest.mark.parametrize(
    ("every", "shown"), [(4, 16), pytest.param(1, 1, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_report_with_any_value_changed_is_one_error_or_is_shown(
    target: Path, every: int, shown: int
) -> None:
    path = target / "report" / "report.json"
    document = json.loads(path.read_bytes())
    accepted = 0
    for what, changed in itertools.islice(mutated(document), None, None, every):
        path.write_text(json.dumps(changed))
        try:
            report = load_report(str(target))
        except InvalidCheckpoint as error:
            assert len(str(error)) < 1000, what  # noqa: PT017
            continue
        accepted += 1
        if accepted % shown == 0:
            render(report, ())
    assert accepted > 100  # counts and words that may be any


def test_a_manifest_with_any_value_changed_is_one_error_or_read(target: Path) -> None:
    document = json.loads((target / "manifest.json").read_bytes())
    for _, changed in mutated(document):
        with suppress(CorruptWeights, InvalidCheckpoint):
            manifest = Manifest.from_bytes(json.dumps(changed).encode(), "manifest.json")
            json.dumps(manifest.to_dict())


def test_a_commit_with_any_value_changed_does_not_count_or_is_a_receipt(target: Path) -> None:
    path = next((target / "run" / "commits").iterdir())
    head, _, body = path.read_bytes().partition(b',"receipt":')
    values, fingerprint = json.loads(body[:-1]), json.loads(head + b"}")["fingerprint"]
    store = open_store(str(target))
    for what, changed in mutated(values):
        text = json.dumps(changed, separators=(",", ":")).encode()
        new = json.loads(head + b"}") | {"checksum": hash_of(text)}
        path.write_bytes(json.dumps(new).encode()[:-1] + b',"receipt":' + text + b"}")
        found = read_commit(store, f"run/commits/{path.name}", fingerprint)
        assert found is not None, what
        if found.receipt is not None:
            assert isinstance(found.receipt.nbytes, int), what
            assert all(isinstance(row.header.layer_name, str) for row in found.receipt.rows), what


@pytest.mark.parametrize(
    ("column", "number"),
    [
        *itertools.product(["row_dims", "row_in_group", "group_size"], [2**31, -(2**31), 10**12, 10**39]),
        *itertools.product(["num_params", "shape", "data"], [2**63, -(2**63), 10**39]),
    ],
)
def test_a_commit_whose_numbers_the_index_cannot_hold_does_not_count(
    target: Path, column: str, number: int
) -> None:
    path = next((target / "run" / "commits").iterdir())
    head, _, body = path.read_bytes().partition(b',"receipt":')
    receipt, said = json.loads(body[:-1]), json.loads(head + b"}")
    value = receipt["rows"][column][0]
    receipt["rows"][column][0] = [*value[:-1], number] if isinstance(value, list) else number
    text = json.dumps(receipt, separators=(",", ":")).encode()
    new = json.dumps(said | {"checksum": hash_of(text)}).encode()
    path.write_bytes(new[:-1] + b',"receipt":' + text + b"}")
    found = read_commit(open_store(str(target)), f"run/commits/{path.name}", said["fingerprint"])
    assert found is not None
    assert found.receipt is None


@pytest.mark.parametrize("path", ["manifest.json", "report/report.json", "run/commits/00000.json"])
@pytest.mark.parametrize(
    "data", [DEEP, b'{"a":' * 200_000, b"9" * 200_000, b'{"report_version": NaN}', b"\xff", b""]
)
@pytest.mark.parametrize("command", ["verify", "report"])
def test_the_commands_say_it_in_one_sentence(target: Path, path: str, data: bytes, command: str) -> None:
    """Run in this process: what is asked is how the commands end."""
    from typer.testing import CliRunner

    from arrowquant_dist.cli.program import app

    (target / path).write_bytes(data)
    ended = CliRunner().invoke(app, [command, str(target)])
    assert ended.exit_code in (0, 1, 2)
    assert ended.exception is None or isinstance(ended.exception, SystemExit)
    assert "Traceback" not in ended.output


def test_a_report_whose_manifest_is_damaged_is_bad_input(target: Path) -> None:
    (target / "manifest.json").write_bytes(DEEP)
    with pytest.raises(InvalidCheckpoint, match="nested"):
        load_report(str(target))


@pytest.mark.parametrize("count", [80, pytest.param(6000, marks=pytest.mark.slow)], ids=["quick", "many"])
def test_a_damaged_plan_never_reaches_arrow(count: int) -> None:
    good = plan_file(read_plan_file((STORED / "run" / "plan.arrow").read_bytes(), "plan.arrow"))
    random_ = random.Random(3)  # noqa: S311
    for _ in range(count):
        data = bytearray(good)
        for _ in range(random_.choice([1, 1, 2, 30])):
            at = random_.randrange(len(data))
            data[at] ^= random_.randrange(1, 256)
        if data == good:
            continue
        with pytest.raises(CorruptWeights, match="damaged"):
            read_plan_file(bytes(data), "plan.arrow")
    for at in range(0, len(good), 97):
        with pytest.raises(CorruptWeights, match="damaged"):
            read_plan_file(good[:at], "plan.arrow")


@pytest.mark.parametrize("count", [100, pytest.param(6000, marks=pytest.mark.slow)], ids=["quick", "many"])
def test_a_damaged_plan_of_a_release_before_the_seal_is_one_error_or_a_plan(count: int) -> None:
    """In a process of its own, since Arrow may end it: how it ends is looked at."""
    begun, telling = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for i, data in enumerate(damaged_plans(count)):
                os.write(telling, i.to_bytes(2, "little"))
                with suppress(ArrowQuantError):
                    table = read_plan_file(data, "plan.arrow")
                    PlannedRun.of(table)
                    plan_from_table(table)
        except BaseException:  # noqa: BLE001 - whatever else it is, the parent hears of it
            os._exit(1)
        os._exit(0)
    os.close(telling)
    last = -1
    while number := os.read(begun, 2):
        last = int.from_bytes(number, "little")
    os.close(begun)
    _, status = os.waitpid(child, 0)
    assert status == 0, (last, signal.Signals(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else status)
    assert last == count - 1


def damaged_plans(count: int) -> Iterator[bytes]:
    good = (STORED / "run" / "plan.arrow").read_bytes()
    random_ = random.Random(4)  # noqa: S311
    for _ in range(count):
        data = bytearray(good)
        at = random_.randrange(len(data) // 8 - 1) * 8
        word = random_.choice([0, 1, 8, 2**31, 2**40, 2**63 - 1, 2**64 - 8])
        data[at : at + 8] = word.to_bytes(8, "little")
        yield bytes(data)


def test_the_program_ends_with_one_sentence_for_a_deep_manifest(target: Path) -> None:
    (target / "manifest.json").write_bytes(DEEP)
    ended = arrowquant("report", str(target / "nothing"), cwd=target)
    assert ended.returncode == 2
    ended = arrowquant("inspect", str(target), cwd=target)
    assert ended.returncode in (1, 2)
    assert len(ended.error.splitlines()) == 1
