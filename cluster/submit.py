"""Runs an `arrowquant` command as a job on a Ray cluster: sends the package, follows the log, exits as the job does.

    python cluster/submit.py --address http://127.0.0.1:8265 -- \\
        quantize s3://models/llama s3://models/llama-int8 --config int8 --workers 64

The exit code is the command's: 0 done, 1 failed, 130 interrupted, 2 bad input or usage (nothing was submitted, or
nothing was written).

It is always safe to run the same command again. While its job runs, the command follows that job, so that no two jobs
run on one target. Once the job has ended, for whatever reason, the command submits a new one, which resumes from what
is at the target. A job's name is made from its command and target (or is --submission-id); later attempts have a number
after it. If a job of that name runs with other arguments, different content of the config file or another version of
the package, that is an error, and the job is not followed.

Ctrl-C detaches, and the job goes on (with --stop-on-interrupt it is stopped). --no-wait submits and returns.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import job_environment
from checkout import PACKAGE

from arrowquant_dist.code_digest import calibration_digest, code_digest, export_digest, training_digest
from arrowquant_dist.config import config_place
from arrowquant_dist.errors import ArrowQuantError, InvalidConfig, StorageError
from arrowquant_dist.storage.uris import is_local, redact

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
CONFIG = "config.yaml"  # name of the file of --config in the job's folder
_OWN_METADATA = "arrowquant."  # prefix of metadata about a job that its command line does not show
_CONFIG_SHA256, _CODE = f"{_OWN_METADATA}config", f"{_OWN_METADATA}code"
_CLUSTERS = "installed"  # recorded as the code of a job that uses the cluster's package
RECONNECTS = 6  # attempts to reach a job server that does not answer, after waits of 1, 2, 4 … seconds
STOP_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Job:
    """What to submit.

    arguments: arguments of `arrowquant`, as the job gets them. name: name of the job; later attempts add a number to
    it. config: content of the config file to send. metadata: metadata shown with the job. variables: environment
    variables of the job's processes. installed: use the package of the cluster's image. config and variables may be
    secret, so they are left out of the repr.
    """

    arguments: tuple[str, ...]
    name: str
    config: bytes | None = field(repr=False)
    metadata: Mapping[str, str]
    variables: Mapping[str, str] = field(repr=False)
    installed: bool = False

    @property
    def entrypoint(self) -> str:
        module = job_environment.__name__ if self.variables else PACKAGE.name
        return shlex.join(["python", "-m", module, *self.arguments])

    @property
    def content(self) -> dict[str, str]:
        """What decides the outcome apart from the arguments, as metadata of the job."""
        config = {} if self.config is None else {_CONFIG_SHA256: hashlib.sha256(self.config).hexdigest()}
        code = _DIGESTS.get(self.arguments[0], code_digest)()
        return {**config, _CODE: _CLUSTERS if self.installed else code}


# For commands whose outcome depends on other code than that of `quantize`.
_DIGESTS = {"export": export_digest, "calibrate": calibration_digest, "distill": training_digest}


def job_of(
    arguments: Sequence[str],
    submission_id: str | None = None,
    metadata: Sequence[str] = (),
    names: Sequence[str] = (),
    *,
    installed: bool = False,
) -> Job:
    """The job for a command line. Raises InvalidConfig for one that cannot work on a cluster.

    metadata: texts of the form "key=value". names: names of environment variables that the job gets from here.
    installed: see Job.
    """
    parameters = parsed(arguments)
    places = [str(parameters[key]) for key in ("source", "target", "uri", "out") if parameters.get(key)]
    for place in [*places, *_also_read(parameters)]:
        _check_place(place)
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise InvalidConfig(f"--env: {', '.join(missing)} is not set here; export it first")
    if wrong := [text for text in metadata if not re.fullmatch(r"[^=]+=.*", text)]:
        raise InvalidConfig(f"--metadata: must be key=value, not {wrong[0]!r}")
    if own := [text for text in metadata if text.startswith(_OWN_METADATA)]:
        raise InvalidConfig(f"--metadata: {_OWN_METADATA}… is reserved for this program; rename {own[0]!r}")
    return Job(
        arguments=tuple(_with_config(arguments, str(parameters.get("config")))),
        name=submission_id or _name(arguments[0], places[-1] if places else ""),
        config=_read_config(parameters["config"]) if parameters.get("config") else None,
        metadata=dict(text.split("=", 1) for text in metadata),
        variables={name: os.environ[name] for name in names},
        installed=installed,
    )


def submit(client: JobSubmissionClient, job: Job) -> tuple[str, bool]:
    """Submits a new attempt, unless one is running already. Returns the submission id and whether it is new.

    Raises InvalidConfig if another command runs under that name, StorageError if Ray refuses the job.
    """
    while True:
        attempts = _attempts(client, job.name)
        running = [attempt for attempt in attempts if not attempt.status.is_terminal()]
        if running:
            _refuse_other(running[0], job)
            return str(running[0].submission_id), False
        wanted = f"{job.name}-{len(attempts) + 1}" if attempts else job.name
        with _packed(job) as runtime_env:
            try:
                return client.submit_job(
                    entrypoint=job.entrypoint,
                    submission_id=wanted,
                    runtime_env=runtime_env,
                    metadata={**job.metadata, **job.content},
                ), True
            except RuntimeError as error:
                if len(_attempts(client, job.name)) == len(attempts):
                    raise StorageError(f"the job was refused: {error}") from error
                # Somebody else has just taken that id: look again.


def follow(client: JobSubmissionClient, submission_id: str) -> int:
    """Shows the job's log until it has ended, and returns its exit code. Raises StorageError if the cluster is gone."""
    shown = 0
    for attempt in range(RECONNECTS):
        try:
            shown = asyncio.run(_show_log(client, submission_id, shown))
            details = client.get_job_info(submission_id)
            while not details.status.is_terminal():
                time.sleep(0.2)
                details = client.get_job_info(submission_id)
            sys.stdout.write(client.get_job_logs(submission_id)[shown:])
            sys.stdout.flush()
        except (OSError, RuntimeError):  # including the errors of requests and aiohttp for a lost connection
            time.sleep(2**attempt)
            continue
        return _exit_code(details)
    message = f"the cluster no longer answers, and job {submission_id} may have ended; submit again to resume"
    raise StorageError(message)


def stop(client: JobSubmissionClient, submission_id: str) -> None:
    """Stops the job, and returns when it has ended. Raises StorageError if that takes longer than STOP_SECONDS."""
    why: Exception | None = None
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            if client.get_job_status(submission_id).is_terminal():
                return
            client.stop_job(submission_id)  # repeated: a job that is about to start may miss it once
        except (OSError, RuntimeError) as error:
            why = error
        time.sleep(0.5)
    raise StorageError(f"job {submission_id} did not stop within {STOP_SECONDS} s ({why})") from why


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """The command's parameters by name, parsed and checked by the program's own command line. Raises InvalidConfig."""
    from typer.main import get_command

    from arrowquant_dist.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    if not arguments or arguments[0] not in commands:
        raise InvalidConfig(f"name the command to run after --, one of {', '.join(commands)}")
    try:
        context = commands[arguments[0]].make_context(arguments[0], list(arguments[1:]))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise InvalidConfig(f"{arguments[0]}: {error.format_message()}") from error
    return dict(context.params)


def _also_read(parameters: Mapping[str, Any]) -> Iterator[str]:
    """Places that a command reads in addition to its source, and that the job has to find as well."""
    for key in ("model", "hessians", "texts", "quantize"):
        place = parameters.get(key)
        if place and not (key == "texts" and str(place).partition(":")[0] == "builtin"):
            yield str(place)


def _check_place(place: str) -> None:
    if redact(place) != place:
        message = "a URL with credentials would be visible to everyone; set them where the workers run, or use --env"
        raise InvalidConfig(message, uri=redact(place))
    if is_local(place) and place != "minilm" and not Path(place).is_absolute():
        message = (
            "a job runs in a folder of its own; use a URL, or the full path on a disk that all nodes share"
        )
        raise InvalidConfig(message, uri=place)


def _with_config(arguments: Sequence[str], config: str) -> Iterator[str]:
    """The arguments, with the config named as it is in the job's folder."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before == "--config" and argument == config:
            yield CONFIG
        elif argument == f"--config={config}":
            yield f"--config={CONFIG}"
        else:
            yield argument


def _name(command: str, place: str) -> str:
    """A name that is the same for the same command and target, whoever submits it, so that a second job is noticed."""
    place = place.rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9]+", "-", place.rpartition("/")[2]).strip("-")[:40]
    return f"{command}-{readable}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def _read_config(config: str) -> bytes:
    """The content of a config file or, given its name, of a preset of the package that submits."""
    path = Path(config_place(config))
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or "no reason given"
        raise InvalidConfig(
            f"cannot read the config file ({reason}); check --config", uri=str(path)
        ) from error


def _refuse_other(running: Any, job: Job) -> None:
    """Raises InvalidConfig if the job that runs under this name does something else. A job that was submitted by other
    means does not record the content of its config file; then that counts as different."""
    theirs = running.metadata or {}
    if running.entrypoint != job.entrypoint:
        what = "other settings"
    elif theirs.get(_CONFIG_SHA256) != job.content.get(_CONFIG_SHA256):
        what = "another config" if _CONFIG_SHA256 in theirs else "an unknown config"
    elif theirs.get(_CODE, job.content[_CODE]) != job.content[_CODE]:
        what = "another version of the package"
    else:
        return
    message = f"job {running.submission_id} runs on this target with {what}; wait for it, or stop it"
    raise InvalidConfig(message)


def _attempts(client: JobSubmissionClient, name: str) -> list[Any]:
    """The jobs of that name, newest first."""
    pattern = re.compile(rf"{re.escape(name)}(-\d+)?")
    found = [job for job in client.list_jobs() if pattern.fullmatch(job.submission_id or "")]
    return sorted(found, key=lambda job: job.start_time or 0, reverse=True)


@contextmanager
def _packed(job: Job) -> Iterator[dict[str, Any]]:
    """A runtime env with what the job needs: the package, its config, and its variables, each in a Ray package.

    They are separate so that the code's package is the same each time, and therefore its folder on a node: kernels that
    an earlier job compiled there are found again, whatever its config was.
    """
    with tempfile.TemporaryDirectory() as folder:
        working_dir, environment = Path(folder) / "job", Path(folder) / job_environment.__name__
        ignored = shutil.ignore_patterns("__pycache__")
        working_dir.mkdir()
        # The job gets a folder of its own even if that is empty, because Python looks for modules there first.
        (working_dir / CONFIG).write_bytes(job.config or b"")
        modules: list[str] = []
        runtime_env: dict[str, Any] = {"working_dir": str(working_dir), "py_modules": modules}
        if not job.installed:
            modules.append(str(shutil.copytree(PACKAGE, Path(folder) / PACKAGE.name, ignore=ignored)))
        if job.variables:
            shutil.copytree(Path(job_environment.__file__).parent, environment, ignore=ignored)
            # Ray names a package by a hash of its content, which must not reveal whether a guessed value is right.
            values = {"variables": dict(job.variables), "salt": secrets.token_hex(32)}
            (environment / job_environment.VALUES).write_text(json.dumps(values))
            modules.append(str(environment))
            runtime_env["worker_process_setup_hook"] = f"{job_environment.__name__}.load"
        yield runtime_env


async def _show_log(client: JobSubmissionClient, submission_id: str, shown: int) -> int:
    """Writes the job's log from character `shown` on. Returns how many characters have been written in all."""
    position = 0
    async for text in client.tail_job_logs(submission_id):
        position += len(text)
        sys.stdout.write(text[len(text) - max(0, position - shown) :] if position > shown else "")
        sys.stdout.flush()
        shown = max(shown, position)
    return shown


def _exit_code(details: Any) -> int:
    """The program's own 0, 1, 2 or 130; 1 if something else ended it."""
    if details.status == "SUCCEEDED":
        return 0
    if details.driver_exit_code not in (1, 2, 130):
        last = str(details.message or "no message").splitlines()[0]
        print(f"error: job {details.submission_id} {details.status.lower()}: {last}", file=sys.stderr)
        return 1
    return int(details.driver_exit_code)


def _client(address: str | None) -> JobSubmissionClient:
    if address is not None:
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # otherwise the variable would win over the option
    address = os.environ.get("RAY_API_SERVER_ADDRESS", DEFAULT_ADDRESS)
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(
        logging.WARNING
    )  # it reports how the socket of each log was closed
    try:
        return JobSubmissionClient(address)
    except (OSError, RuntimeError) as error:
        message = f"no job server answers there; is the cluster up, and the port forwarded? ({error})"
        raise StorageError(message, uri=redact(address)) from error


def _run(options: argparse.Namespace) -> int:
    job = job_of(
        options.command, options.submission_id, options.metadata, options.env, installed=options.installed
    )
    client = _client(options.address)
    submission_id, is_new = submit(client, job)
    try:
        print(f"job {submission_id} {'submitted' if is_new else 'is already running'}", file=sys.stderr)
        if options.no_wait:
            return 0
        return follow(client, submission_id)
    except KeyboardInterrupt:
        if options.stop_on_interrupt:
            stop(client, submission_id)
            print("stopped; the same command resumes", file=sys.stderr)
        else:
            print(
                f"detached; the job goes on, and the same command follows it. To stop it: "
                f"ray job stop {submission_id}",
                file=sys.stderr,
            )
        return 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--address", help=f"URL of the job server (default RAY_API_SERVER_ADDRESS, else {DEFAULT_ADDRESS})")
    add("--submission-id", metavar="ID", help="name of the job (default: from command and target)")
    add(
        "--metadata",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="metadata shown with the job; repeatable",
    )
    add(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="name of an environment variable to pass to the job; repeatable",
    )
    add("--installed", action="store_true", help="use the package that the cluster has; do not send this one")
    add("--no-wait", action="store_true", help="submit and return")
    add("--stop-on-interrupt", action="store_true", help="Ctrl-C stops the job instead of detaching")
    add(
        "command",
        nargs="+",
        metavar="-- COMMAND",
        help="arguments of arrowquant: quantize SOURCE TARGET …, export TARGET OUT …",
    )
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except ArrowQuantError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
