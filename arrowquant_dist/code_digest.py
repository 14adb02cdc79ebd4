"""Digests of the code that decides the bytes of a dataset, an export, a calibration or a training, each of which is
made by one version of it.

Ray's workers report their digests before they get a job. The fingerprint of a plan or a calibration and the mark of an
export contain one, so that one version does not complete what another began. `quantize` imports nothing of `export`,
whose code is in an export's digest alone. A new module that a worker imports, inside functions too, belongs to the
lists below; a test follows the imports of all workers and names modules that are neither listed nor known to change no
bytes.

The text is hashed as it is, with comments and docstrings: this takes 2 ms, where parsing the modules to leave those out
took 180 to 290 ms, and `ast.dump` differs between versions of Python. The price is that a release which changes only a
comment does not resume an unfinished run of the release before it. That release can finish it, and finished datasets
are not affected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

DECIDES_BYTES = (
    "kernels",
    "methods",
    "tensor",
    "format",
    "checkpoint",
    "encodings",
    "dataset",  # a dataset may be a source
    "worker",
    "plan/blocks.py",  # which values a row block has
    "config/spec.py",  # how many groups a row has, and how many bits a code
    "arena.py",
    "columns.py",
    "dtypes.py",
    "export_names.py",  # the mark in exports, and the names by which an export is told from a dataset
)
EXPORTS = ("export",)  # with those above, decides the bytes of what is written for other programs
# With those of a dataset, decide what a calibration writes.
CALIBRATES = (
    "calibration",
    "models",
    "loader",  # fills models
)
# With those of a calibration, decide what a training finds; it needs no more of these than what fills and runs models.
TRAINS = ("distillation",)
# In the folders above, but without effect on what is written: these only run a model.
DECIDES_NOTHING = ("kernels/products",)
_PACKAGE = Path(__file__).parent


@cache
def code_digest() -> str:
    """The digest for datasets: 16 hex digits, the same for equal code on any machine."""
    return digest_of(_PACKAGE, DECIDES_BYTES)


@cache
def export_digest() -> str:
    """The digest for exports, which includes the code that reads and quantizes, since that decides the bytes too."""
    return digest_of(_PACKAGE, (*DECIDES_BYTES, *EXPORTS))


@cache
def calibration_digest() -> str:
    """The digest for calibrations, which includes the code that runs the model."""
    return digest_of(_PACKAGE, (*DECIDES_BYTES, *CALIBRATES))


@cache
def training_digest() -> str:
    """The digest for trainings, whose workers have to make the same steps."""
    return digest_of(_PACKAGE, (*DECIDES_BYTES, *CALIBRATES, *TRAINS))


def digests() -> tuple[str, ...]:
    """All digests of this package. Whichever of them is asked for, an equal package has it among its own."""
    return code_digest(), export_digest(), calibration_digest(), training_digest()


def digest_of(package: Path, decisive: Iterable[str]) -> str:
    """Digest of some modules. package: the folder of arrowquant_dist's modules, in a checkout or installed. decisive:
    the folders and modules in it that count."""
    digest = hashlib.sha256()
    others = {path for name in DECIDES_NOTHING for path in _modules(package / name)}
    for path in sorted(path for name in decisive for path in _modules(package / name)):
        if path in others:
            continue
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _modules(place: Path) -> list[Path]:
    return [place] if place.is_file() else list(place.rglob("*.py"))
