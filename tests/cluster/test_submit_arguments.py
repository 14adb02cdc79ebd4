"""What submit.py makes of a command line, before it asks any cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
import submit

from arrowquant_dist.errors import InvalidConfig

SOURCE, TARGET = "s3://bucket/model", "s3://bucket/model-int8"


def test_a_job_is_named_after_its_target_so_two_submitters_choose_one_name() -> None:
    name = submit.job_of(["quantize", SOURCE, TARGET]).name
    assert name.startswith("quantize-model-int8-")
    assert submit.job_of(["quantize", "--workers", "8", SOURCE, f"{TARGET}/"]).name == name
    assert submit.job_of(["quantize", SOURCE, "s3://other/model-int8"]).name != name
    assert submit.job_of(["verify", TARGET]).name.startswith("verify-model-int8-")


def test_a_name_of_ones_own_counts() -> None:
    assert submit.job_of(["quantize", SOURCE, TARGET], submission_id="nightly").name == "nightly"


@pytest.mark.parametrize("spelling", ["--config {}", "--config={}"])
def test_the_config_file_goes_along_under_a_name_of_the_jobs_folder(spelling: str, tmp_path: Path) -> None:
    config = tmp_path / "my config.yaml"
    config.write_text("quant_type: int4")
    options = [part.format(config) for part in spelling.split(" ")]
    job = submit.job_of(["quantize", SOURCE, TARGET, *options, "--workers", "4"])
    assert job.config == config
    assert str(tmp_path) not in job.entrypoint
    assert "config.yaml --workers 4" in job.entrypoint


def test_arguments_reach_the_shell_quoted() -> None:
    assert "'s3://b/x; rm -rf /'" in submit.job_of(["quantize", SOURCE, "s3://b/x; rm -rf /"]).entrypoint


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quantize", SOURCE], "Missing argument 'TARGET'"),
        (["quantise", SOURCE, TARGET], "quantize, inspect"),
        (["quantize", SOURCE, TARGET, "--wrokers", "3"], "--wrokers"),
        (["quantize", SOURCE, TARGET, "--config", "no-such.yaml"], "no such config file"),
        (["quantize", SOURCE, "out/int8"], "full path"),
        (["quantize", "models/llama", TARGET], "full path"),
        (["verify", "out/int8"], "full path"),
    ],
)
def test_a_command_that_cannot_work_is_refused_here(arguments: list[str], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        submit.job_of(arguments)


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidConfig, match="would be seen by all") as raised:
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


def test_without_a_job_server_the_error_says_what_to_look_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(["--address", "http://127.0.0.1:9", "--", "quantize", SOURCE, TARGET]) == 1
    assert "is the cluster up" in capsys.readouterr().err
