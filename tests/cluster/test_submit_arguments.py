"""How submit.py interprets a command line before it asks any cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import submit
from ray.job_submission import JobStatus

from arrowquant_dist.code_digest import calibration_digest, code_digest, export_digest, training_digest
from arrowquant_dist.errors import InvalidConfig

SOURCE, TARGET = "s3://bucket/model", "s3://bucket/model-int8"


def test_a_job_is_named_after_its_target_so_two_submitters_choose_one_name() -> None:
    name = submit.job_of(["quantize", SOURCE, TARGET]).name
    assert name.startswith("quantize-model-int8-")
    assert submit.job_of(["quantize", "--workers", "8", SOURCE, f"{TARGET}/"]).name == name
    assert submit.job_of(["quantize", SOURCE, "s3://other/model-int8"]).name != name
    assert submit.job_of(["verify", TARGET]).name.startswith("verify-model-int8-")


def test_an_export_is_named_after_its_output_and_runs_the_code_of_exports() -> None:
    """Two formats of one dataset are two jobs; other code of exports is no other `quantize`."""
    arguments = ["export", TARGET, "s3://bucket/served", "--format", "gguf", "--source", SOURCE]
    job = submit.job_of(arguments)
    assert job.name.startswith("export-served-")
    assert job.content == {"arrowquant.code": export_digest()}
    assert submit.job_of(["quantize", SOURCE, TARGET]).content == {"arrowquant.code": code_digest()}
    assert code_digest() != export_digest()
    with pytest.raises(InvalidConfig, match="a job runs in a folder of its own"):
        submit.job_of(["export", TARGET, "served", "--format", "v1"])


@pytest.mark.parametrize(
    ("arguments", "digest"),
    [
        (["calibrate", SOURCE, "s3://bucket/out", "--texts", "builtin"], calibration_digest),
        (["distill", "minilm", TARGET, "s3://bucket/out", "--texts", "builtin:held-back"], training_digest),
    ],
)
def test_a_calibration_or_training_is_named_after_its_output_and_runs_its_own_code(
    arguments: list[str], digest: Callable[[], str]
) -> None:
    job = submit.job_of(arguments)
    assert job.name.startswith(f"{arguments[0]}-out-")
    assert job.content == {"arrowquant.code": digest()}
    assert digest() not in (code_digest(), export_digest())


@pytest.mark.parametrize(
    "arguments",
    [
        ["calibrate", "model", "s3://bucket/out", "--texts", "builtin"],
        ["calibrate", SOURCE, "s3://bucket/out", "--texts", "texts.txt"],
        ["calibrate", SOURCE, "s3://bucket/out", "--texts", "builtin", "--quantize", "int4.yaml"],
        ["distill", "model", TARGET, "s3://bucket/out", "--texts", "builtin"],
        ["quantize", SOURCE, TARGET, "--hessians", "statistics"],
    ],
)
def test_what_a_job_would_not_find_in_its_folder_is_refused(arguments: list[str]) -> None:
    with pytest.raises(InvalidConfig, match="a job runs in a folder of its own"):
        submit.job_of(arguments)


def test_a_name_of_ones_own_counts() -> None:
    assert submit.job_of(["quantize", SOURCE, TARGET], submission_id="nightly").name == "nightly"


@pytest.mark.parametrize("spelling", ["--config {}", "--config={}"])
def test_the_config_file_goes_along_under_a_name_of_the_jobs_folder(spelling: str, tmp_path: Path) -> None:
    config = tmp_path / "my config.yaml"
    config.write_text("quant_type: int4")
    options = [part.format(config) for part in spelling.split(" ")]
    job = submit.job_of(["quantize", SOURCE, TARGET, *options, "--workers", "4"])
    assert job.config == b"quant_type: int4"
    assert "int4" not in repr(job)
    assert str(tmp_path) not in job.entrypoint
    assert "config.yaml --workers 4" in job.entrypoint


@dataclass(frozen=True)
class Running:
    """A job as the job server tells of it."""

    entrypoint: str
    metadata: dict[str, str] | None
    submission_id: str = "quantize-model"
    start_time: int = 1
    status: JobStatus = JobStatus.RUNNING


class Jobs:
    """A job server on which one job runs."""

    def __init__(self, running: Running) -> None:
        self.running = running

    def list_jobs(self) -> list[Running]:
        return [self.running]


def job(tmp_path: Path, content: str | None = None, *, installed: bool = False) -> submit.Job:
    arguments = ["quantize", SOURCE, TARGET]
    if content is not None:
        (tmp_path / "c.yaml").write_text(content)
        arguments += ["--config", str(tmp_path / "c.yaml")]
    return submit.job_of(arguments, "quantize-model", installed=installed)


def submitted(running: submit.Job, metadata: dict[str, str] | None, asked: submit.Job) -> tuple[str, bool]:
    return submit.submit(Jobs(Running(running.entrypoint, metadata)), asked)


def test_the_same_command_with_the_same_content_follows_the_job_that_runs(tmp_path: Path) -> None:
    for content in (None, "quant_type: int4"):
        asked = job(tmp_path, content)
        running = {**asked.content, "team": "blue"}
        assert submitted(asked, running, asked) == ("quantize-model", False)


@pytest.mark.parametrize(
    ("running", "asked"),
    [("quant_type: int4", "quant_type: int2"), ("quant_type: int4", "quant_type: int4 ")],
)
def test_the_same_command_with_another_content_of_its_config_is_refused(
    tmp_path: Path, running: str, asked: str
) -> None:
    first, second = job(tmp_path, running), job(tmp_path, asked)
    assert first.entrypoint == second.entrypoint
    with pytest.raises(InvalidConfig, match="quantize-model runs on this target with another config"):
        submitted(first, first.content, second)


def test_a_job_that_has_not_told_its_config_is_not_followed(tmp_path: Path) -> None:
    """It was submitted by other means, or by an older submit.py."""
    asked = job(tmp_path, "quant_type: int4")
    for metadata in (None, {}, {"team": "blue"}):
        with pytest.raises(InvalidConfig, match="an unknown config"):
            submitted(asked, metadata, asked)
    without = job(tmp_path)
    assert submitted(without, None, without) == ("quantize-model", False)


def test_a_job_of_another_version_of_the_package_is_not_followed(tmp_path: Path) -> None:
    sent, clusters = job(tmp_path), job(tmp_path, installed=True)
    with pytest.raises(InvalidConfig, match="another version of the package"):
        submitted(sent, clusters.content, sent)
    with pytest.raises(InvalidConfig, match="another version of the package"):
        submitted(clusters, {**clusters.content, "arrowquant.code": "0123456789abcdef"}, clusters)


def test_metadata_of_ones_own_cannot_pass_for_the_programs() -> None:
    with pytest.raises(InvalidConfig, match="is reserved for this program"):
        submit.job_of(["quantize", SOURCE, TARGET], metadata=["arrowquant.config=1"])


def test_the_code_s_package_is_the_same_whatever_config_goes_along(tmp_path: Path) -> None:
    def sent(content: str) -> tuple[list[str], dict[str, bytes], list[str]]:
        with submit._packed(job(tmp_path, content)) as runtime_env:
            folders = [Path(module) for module in runtime_env["py_modules"]]
            files = {
                str(path.relative_to(folder)): path.read_bytes()
                for folder in folders
                for path in folder.rglob("*.py")
            }
            there = [path.name for path in Path(runtime_env["working_dir"]).iterdir()]
            return [folder.name for folder in folders], files, there

    first, second = sent("quant_type: int4"), sent("quant_type: int2")
    assert first == second
    assert first[0] == ["arrowquant_dist"]
    assert first[2] == ["config.yaml"]


def test_arguments_reach_the_shell_quoted() -> None:
    assert "'s3://b/x; rm -rf /'" in submit.job_of(["quantize", SOURCE, "s3://b/x; rm -rf /"]).entrypoint


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quantize", SOURCE], "Missing argument 'TARGET'"),
        (["quantise", SOURCE, TARGET], "quantize, inspect"),
        (["quantize", SOURCE, TARGET, "--wrokers", "3"], "--wrokers"),
        (["quantize", SOURCE, TARGET, "--config", "no-such.yaml"], "cannot read the config file"),
        (["quantize", SOURCE, "out/int8"], "full path"),
        (["quantize", "models/llama", TARGET], "full path"),
        (["verify", "out/int8"], "full path"),
    ],
)
def test_a_command_that_cannot_work_is_refused_here(arguments: list[str], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        submit.job_of(arguments)


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidConfig, match="would be visible to everyone") as raised:
        submit.job_of(["quantize", "s3://key:hunter2@bucket/model", TARGET])
    assert "hunter2" not in str(raised.value)


def test_variables_are_taken_from_here_by_name_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "hunter2")
    job = submit.job_of(["quantize", SOURCE, TARGET], names=["MY_SECRET"])
    assert job.variables == {"MY_SECRET": "hunter2"}
    assert "hunter2" not in repr(job)
    with pytest.raises(InvalidConfig, match="NOT_SET_ANYWHERE"):
        submit.job_of(["quantize", SOURCE, TARGET], names=["NOT_SET_ANYWHERE"])


def test_metadata_is_key_and_value() -> None:
    job = submit.job_of(["quantize", SOURCE, TARGET], metadata=["team=a=b"])
    assert job.metadata == {"team": "a=b"}
    with pytest.raises(InvalidConfig, match="key=value"):
        submit.job_of(["quantize", SOURCE, TARGET], metadata=["team"])


def test_without_a_job_server_the_error_says_what_to_look_at(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # what the program makes of it goes with this test
    assert submit.main(["--address", "http://127.0.0.1:9", "--", "quantize", SOURCE, TARGET]) == 1
    assert "is the cluster up" in capsys.readouterr().err
