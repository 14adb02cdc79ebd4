"""Runs an `arrowquant` command as a job of a Ray cluster: sends the package, follows the log, ends as the job ended.

    python cluster/submit.py --address http://127.0.0.1:8265 -- \\
        quantize s3://models/llama s3://models/llama-int8 --config int8 --workers 64

The exit code is the command's: 0 done, 1 failed, 130 interrupted, 2 bad input or usage (then nothing was submitted, or
nothing written).

The same command again is always right. While its job runs it follows that job, so that no two run on one target; after
the job ended, however it ended, it submits a new one, which resumes from what is at the target. A job's name is made of
its command and target (or is --submission-id), and later attempts have a number behind it. What runs under that name
with other arguments, another content of the config's file or another version of the package is refused, not followed.

Ctrl-C detaches: the job goes on (with --stop-on-interrupt it is stopped). --no-wait submits and returns.
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
CONFIG = "config.yaml"  # what --config is called in the job's folder
_OWN_METADATA = "arrowquant."  # of a job: what its command line does not tell
_CONFIG_SHA256, _CODE = f"{_OWN_METADATA}config", f"{_OWN_METADATA}code"
_CLUSTERS = "installed"  # the code of a job that uses the cluster's package
RECONNECTS = 6  # waits of 1, 2, 4 … seconds for a job server that does not answer
STOP_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Job:
    """arguments: of `arrowquant`, as the job gets them. name: what attempts at it are called. config: the content of a
    file to send, which may hold secrets. installed: the package of the cluster's image is used.

    variables: for the job's processes; they may be secrets, so they are in no repr.
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
        """What decides the outcome beside the arguments, as metadata of the job."""
        config = {} if self.config is None else {_CONFIG_SHA256: hashlib.sha256(self.config).hexdigest()}
        code = _DIGESTS.get(self.arguments[0], code_digest)()
        return {**config, _CODE: _CLUSTERS if self.installed else code}


# Of commands whose outcome other code decides than `quantize`'s.
_DIGESTS = {"export": export_digest, "calibrate": calibration_digest, "distill": training_digest}


def job_of(
    arguments: Sequence[str],
    submission_id: str | None = None,
    metadata: Sequence[str] = (),
    names: Sequence[str] = (),
    *,
    installed: bool = False,
) -> Job:
    """What to submit for a command line. Raises InvalidConfig for one that can't be right on a cluster.

    metadata: texts "key=value". names: of variables of this environment that the job shall have. installed: see Job.
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
        raise InvalidConfig(f"--metadata: {_OWN_METADATA}… is taken by this program; rename {own[0]!r}")
    return Job(
        arguments=tuple(_with_config(arguments, str(parameters.get("config")))),
        name=submission_id or _name(arguments[0], places[-1] if places else ""),
        config=_read_config(parameters["config"]) if parameters.get("config") else None,
        metadata=dict(text.split("=", 1) for text in metadata),
        variables={name: os.environ[name] for name in names},
        installed=installed,
    )


def submit(client: JobSubmissionClient, job: Job) -> tuple[str, bool]:
    """(submission id, whether it is new): a new attempt's, or that of the one that runs already.

    Raises InvalidConfig where what runs under that name is another command, StorageError where Ray refuses.
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
                # Somebody else took that id just now: look again.


def follow(client: JobSubmissionClient, submission_id: str) -> int:
    """Shows the job's log until it has ended; its exit code. Raises StorageError where the cluster is gone."""
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
        except (OSError, RuntimeError):  # requests' and aiohttp's errors of a lost connection among them
            time.sleep(2**attempt)
            continue
        return _exit_code(details)
    message = (
        f"the cluster does not answer any more, and job {submission_id} may be over; submit again to resume"
    )
    raise StorageError(message)


def stop(client: JobSubmissionClient, submission_id: str) -> None:
    """Stops the job, and returns when it has ended. StorageError where that takes longer than STOP_SECONDS."""
    why: Exception | None = None
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            if client.get_job_status(submission_id).is_terminal():
                return
            client.stop_job(submission_id)  # again: one that is about to start may not hear the first
        except (OSError, RuntimeError) as error:
            why = error
        time.sleep(0.5)
    raise StorageError(f"job {submission_id} did not stop within {STOP_SECONDS} s ({why})") from why


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """The command's parameters by name, checked by the command line itself. Raises InvalidConfig."""
    from typer.main import get_command

    from arrowquant_dist.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    if not arguments or arguments[0] not in commands:
        raise InvalidConfig(f"say which command to run after --: {', '.join(commands)}")
    try:
        context = commands[arguments[0]].make_context(arguments[0], list(arguments[1:]))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise InvalidConfig(f"{arguments[0]}: {error.format_message()}") from error
    return dict(context.params)


def _also_read(parameters: Mapping[str, Any]) -> Iterator[str]:
    """Places that a command reads beside its source, which the job has to find as well."""
    for key in ("model", "hessians", "texts", "quantize"):
        place = parameters.get(key)
        if place and not (key == "texts" and str(place).partition(":")[0] == "builtin"):
            yield str(place)


def _check_place(place: str) -> None:
    if redact(place) != place:
        message = (
            "an address with credentials would be seen by all; set them where the workers run, or use --env"
        )
        raise InvalidConfig(message, uri=redact(place))
    if is_local(place) and place != "minilm" and not Path(place).is_absolute():
        message = (
            "a job runs in a folder of its own; give a URL, or the full path of a disk that all nodes share"
        )
        raise InvalidConfig(message, uri=place)


def _with_config(arguments: Sequence[str], config: str) -> Iterator[str]:
    """The arguments with the config's name as it is in the job's folder."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before == "--config" and argument == config:
            yield CONFIG
        elif argument == f"--config={config}":
            yield f"--config={CONFIG}"
        else:
            yield argument


def _name(command: str, place: str) -> str:
    """The same for the same command and target, whoever submits: so two at once are noticed."""
    place = place.rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9]+", "-", place.rpartition("/")[2]).strip("-")[:40]
    return f"{command}-{readable}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def _read_config(config: str) -> bytes:
    """Of a file or, by its name, of a preset of the package that submits."""
    path = Path(config_place(config))
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or "it can't be read"
        raise InvalidConfig(
            f"there is no such config file to read ({reason}); check --config", uri=str(path)
        ) from error


def _refuse_other(running: Any, job: Job) -> None:
    """InvalidConfig where the job that runs under this name does something else, as far as can be told: what was
    submitted by other means has not said what is in its config."""
    theirs = running.metadata or {}
    if running.entrypoint != job.entrypoint:
        what = "other settings"
    elif theirs.get(_CONFIG_SHA256) != job.content.get(_CONFIG_SHA256):
        what = "another config" if _CONFIG_SHA256 in theirs else "a config that it has not told"
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
    """A runtime env with what the job needs: the package and its config, and apart from them its variables.

    Packages of their own, so that the code's is the same each time, and so its folder on a node: the kernels that were
    compiled there are found again, whatever the config of the job before.
    """
    with tempfile.TemporaryDirectory() as folder:
        working_dir, environment = Path(folder) / "job", Path(folder) / job_environment.__name__
        ignored = shutil.ignore_patterns("__pycache__")
        working_dir.mkdir()
        # A folder of the job's own even where it is empty: Python looks for modules there first.
        (working_dir / CONFIG).write_bytes(job.config or b"")
        modules: list[str] = []
        runtime_env: dict[str, Any] = {"working_dir": str(working_dir), "py_modules": modules}
        if not job.installed:
            modules.append(str(shutil.copytree(PACKAGE, Path(folder) / PACKAGE.name, ignore=ignored)))
        if job.variables:
            shutil.copytree(Path(job_environment.__file__).parent, environment, ignore=ignored)
            # The package is named by a hash of its content, which must not tell whether a guessed value is right.
            values = {"variables": dict(job.variables), "salt": secrets.token_hex(32)}
            (environment / job_environment.VALUES).write_text(json.dumps(values))
            modules.append(str(environment))
            runtime_env["worker_process_setup_hook"] = f"{job_environment.__name__}.load"
        yield runtime_env


async def _show_log(client: JobSubmissionClient, submission_id: str, shown: int) -> int:
    """Writes the job's log from character `shown` on; returns how much of it is written."""
    position = 0
    async for text in client.tail_job_logs(submission_id):
        position += len(text)
        sys.stdout.write(text[len(text) - max(0, position - shown) :] if position > shown else "")
        sys.stdout.flush()
        shown = max(shown, position)
    return shown


def _exit_code(details: Any) -> int:
    """The program's own 0, 1, 2 or 130; whatever else ended it is a failure."""
    if details.status == "SUCCEEDED":
        return 0
    if details.driver_exit_code not in (1, 2, 130):
        last = str(details.message or "no message").splitlines()[0]
        print(f"error: job {details.submission_id} {details.status.lower()}: {last}", file=sys.stderr)
        return 1
    return int(details.driver_exit_code)


def _client(address: str | None) -> JobSubmissionClient:
    if address is not None:
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # it would win over what was typed
    address = os.environ.get("RAY_API_SERVER_ADDRESS", DEFAULT_ADDRESS)
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(
        logging.WARNING
    )  # says how each log's socket closed
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
        print(f"job {submission_id} {'submitted' if is_new else 'is running already'}", file=sys.stderr)
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
    add("--address", help=f"of the job server (default RAY_API_SERVER_ADDRESS, else {DEFAULT_ADDRESS})")
    add("--submission-id", metavar="ID", help="name of the job (default: from command and target)")
    add("--metadata", action="append", default=[], metavar="KEY=VALUE", help="shown with the job; repeatable")
    add("--env", action="append", default=[], metavar="NAME", help="variable that the job gets; repeatable")
    add("--installed", action="store_true", help="use the package installed there, don't send this one")
    add("--no-wait", action="store_true", help="submit and return")
    add("--stop-on-interrupt", action="store_true", help="Ctrl-C stops the job instead of detaching")
    add(
        "command",
        nargs="+",
        metavar="-- COMMAND",
        help="what arrowquant is given: quantize SOURCE TARGET …, export TARGET OUT …",
    )
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except ArrowQuantError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
