"""One checkpoint, the dataset that an undisturbed run makes from it, and a line on the terminal for every case."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.chaos.runs import LARGE_PARTS, TIMES_LONG, Source, Weights, quiet_weights, write_source
from tests.servers.seaweedfs import SeaweedFS

Note = Callable[[str], None]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return write_source(tmp_path_factory.mktemp("chaos") / "source")


@pytest.fixture(scope="session")
def quiet(checkpoint: Source, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Codes, scales and zero points of an undisturbed run."""
    return quiet_weights(checkpoint, tmp_path_factory.mktemp("quiet") / "target")


@pytest.fixture(scope="session")
def quiet_large(checkpoint: Source, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The same with one scale per layer."""
    return quiet_weights(checkpoint, tmp_path_factory.mktemp("quiet") / "target", LARGE_PARTS)


@pytest.fixture(scope="session")
def long_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """A checkpoint with enough work to strike a cluster's run in the middle: 0.8 s on two actors."""
    source = write_source(tmp_path_factory.mktemp("chaos-long") / "source", TIMES_LONG)
    yield source
    shutil.rmtree(source.folder)


@pytest.fixture(scope="session")
def long_quiet(long_checkpoint: Source, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Codes, scales and zero points of an undisturbed run on the long checkpoint."""
    target = tmp_path_factory.mktemp("quiet") / "target"
    weights = quiet_weights(long_checkpoint, target)
    shutil.rmtree(target)
    return weights


@pytest.fixture(scope="session")
def stored(seaweedfs: SeaweedFS, checkpoint: Source) -> str:
    """URI of the checkpoint on the server. No test changes it."""
    uri = f"{seaweedfs.make_bucket('chaos-source')}/source"
    seaweedfs.objects.upload_folder(checkpoint.folder, uri)
    return uri


@pytest.fixture(autouse=True)
def note(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Iterator[Note]:
    """Takes notes of what happened to the run, and prints them with the case's name at the end."""
    notes: list[str] = []
    yield notes.append
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and notes:
        line = f"\n  {request.node.name}: {'; '.join(notes)}"
        with capsys.disabled():
            reporter.write_line(line)
