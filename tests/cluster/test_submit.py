"""submit.py against a real job server: a head without CPUs and two worker nodes on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import local
import numpy as np
import psutil
import pytest
from safetensors.numpy import save

from arrowquant_dist.verify import verify
from tests.conftest import CHECKOUT
from tests.servers.fixtures import Bucket

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

SUBMIT = CHECKOUT / "cluster" / "submit.py"
CONFIG = CHECKOUT / "configs" / "int8.yaml"
# Whoever started pytest in the background had SIGINT ignored for all that it starts.
_HEEDS_CTRL_C = f"""
import signal, sys
sys.path.insert(0, {str(SUBMIT.parent)!r})
signal.signal(signal.SIGINT, signal.default_int_handler)
import submit
sys.exit(submit.main())
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[local.LocalCluster]:
    with local.running(2, 0) as started:
        yield started


@pytest.fixture
def client(cluster: local.LocalCluster) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    return JobSubmissionClient(cluster.dashboard, headers={"Authorization": f"Bearer {token}"})


def submit(
    cluster: local.LocalCluster, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SUBMIT), "--address", cluster.dashboard, *map(str, arguments)]
    variables = {**os.environ, **cluster.environment, **environment}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=variables, cwd="/")


@pytest.mark.slow
def test_a_job_is_followed_to_its_end_once_however_often_it_is_submitted(
    cluster: local.LocalCluster, client: JobSubmissionClient, tmp_path: Path
) -> None:
    target = tmp_path / "minilm-int8"
    config = tmp_path / "config.yaml"
    shutil.copyfile(CONFIG, config)
    command = ("--", "quantize", "minilm", target, "--config", config, "--workers", 2)
    started = submit(cluster, "--no-wait", "--metadata", "team=blue", *command)
    assert started.returncode == 0, started.stderr
    other = submit(cluster, *command, "--quant", "int2")
    assert other.returncode == 2, other.stdout + other.stderr
    assert "runs on this target with other settings" in other.stderr
    content = CONFIG.read_text()
    config.write_text(content.replace("int8", "int2"))
    other = submit(cluster, *command)
    assert other.returncode == 2, other.stdout + other.stderr
    assert "runs on this target with another config" in other.stderr
    config.write_text(content)
    followed = submit(cluster, *command)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "is already running" in followed.stderr
    assert f"written to {target}" in followed.stdout.replace("\n", "")
    assert verify(str(target)).is_sound
    again = submit(cluster, *command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "is finished already" in again.stdout.replace("\n", " ")
    first, second = sorted(job.submission_id or "" for job in client.list_jobs() if job.submission_id)
    assert second == f"{first}-2"
    metadata = client.get_job_info(first).metadata or {}
    assert metadata["team"] == "blue"
    assert set(metadata) == {"team", "arrowquant.config", "arrowquant.code"}


@pytest.mark.slow
def test_a_job_with_another_config_runs_the_code_where_the_one_before_has_compiled_it(
    cluster: local.LocalCluster, tmp_path: Path
) -> None:
    for number in (1, 2):
        config = tmp_path / f"{number}.yaml"
        config.write_text(f"quant_type: int8\nrun: {{workers: {number}}}\n")
        done = submit(
            cluster, "--", "quantize", tmp_path / "nothing", tmp_path / "target", "--config", config
        )
        assert done.returncode == 2, done.stdout + done.stderr
    packages = {path.parent.name for path in Path(cluster.folder).rglob("_ray_pkg_*/arrowquant_dist")}
    assert len(packages) == 1


@pytest.mark.slow
def test_bad_input_ends_with_its_own_exit_code_and_message(
    cluster: local.LocalCluster, tmp_path: Path
) -> None:
    done = submit(cluster, "--", "quantize", tmp_path / "nothing", tmp_path / "target")
    assert done.returncode == 2
    assert "error:" in done.stdout
    assert not (tmp_path / "target").exists()


@pytest.mark.slow
def test_a_secret_reaches_driver_and_workers_and_shows_nowhere(
    cluster: local.LocalCluster, client: JobSubmissionClient, bucket: Bucket
) -> None:
    """Both read and write the bucket, which only these variables open."""
    options = bucket.storage_options
    secrets = {
        "AWS_ACCESS_KEY_ID": options["key"],
        "AWS_SECRET_ACCESS_KEY": options["secret"],
        "AWS_ENDPOINT_URL": options["client_kwargs"]["endpoint_url"],
    }
    weights = {"a.weight": np.eye(64, dtype=np.float32)}
    bucket.objects.put(f"{bucket.uri}/model/model.safetensors", save(weights))
    names = [argument for name in secrets for argument in ("--env", name)]
    target = f"{bucket.uri}/target"
    with _Watch(options["secret"]) as watch:
        command = ("quantize", f"{bucket.uri}/model", target, "--workers", 1)
        done = submit(cluster, "--submission-id", "secret", *names, "--", *command, **secrets)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "manifest.json" in bucket.objects.sizes(target)
    shown = [done.stdout, done.stderr, client.get_job_logs("secret"), repr(client.get_job_info("secret"))]
    assert not [text for text in shown if options["secret"] in text]
    assert not watch.seen
    logs = [path for path in Path(cluster.folder).rglob("logs/**/*") if path.is_file()]
    assert logs
    assert not [path for path in logs if options["secret"].encode() in path.read_bytes()]


class _Watch(threading.Thread):
    """Looks at the arguments of all processes, over and over, for a text that must not be there."""

    def __init__(self, text: str) -> None:
        super().__init__(daemon=True)
        self._text = text
        self._over = threading.Event()
        self.seen: list[str] = []

    def run(self) -> None:
        while not self._over.wait(0.02):
            for process in psutil.process_iter(["cmdline"]):
                arguments = " ".join(process.info["cmdline"] or ())
                if self._text in arguments:
                    self.seen.append(arguments)

    def __enter__(self) -> _Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


@pytest.mark.slow
def test_a_stopped_job_is_a_failure_and_the_same_command_resumes(
    cluster: local.LocalCluster, client: JobSubmissionClient, tmp_path: Path
) -> None:
    target = tmp_path / "stopped"
    command = ("--submission-id", "stopped", "--", "quantize", "minilm", target, "--quant", "int2")
    with subprocess.Popen(
        [sys.executable, "-c", _HEEDS_CTRL_C, "--stop-on-interrupt", *map(str, command)],
        env={**os.environ, **cluster.environment, "RAY_API_SERVER_ADDRESS": cluster.dashboard},
        stderr=subprocess.PIPE,
        text=True,
    ) as follower:
        assert follower.stderr is not None
        assert any("submitted" in line for line in follower.stderr)
        follower.send_signal(signal.SIGINT)
        said = follower.stderr.read()
        assert follower.wait() == 1, said
        assert "what is finished is kept, run the same command again to resume" in said
    assert client.get_job_status("stopped") == "STOPPED"
    done = submit(cluster, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert client.get_job_status("stopped-2") == "SUCCEEDED"
    assert verify(str(target)).is_sound
