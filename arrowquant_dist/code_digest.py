"""Digests of the code that decides a dataset's bytes, an export's, a calibration's or a training's: each is made by one
version of it.

Ray's workers say theirs before they get a job, and a plan's or a calibration's fingerprint and an export's mark hold
it, so that what one version began is not completed by another. `quantize` imports nothing of `export`, whose code is in
an export's digest alone. A new module that a worker imports, inside functions too, belongs to the lists below; a test
follows the imports of all workers and names those that are neither there nor known to change no bytes.

The text is hashed as it stands, comments and docstrings with it: 2 ms, where parsing the modules to leave those out
took 180 to 290 ms, and `ast.dump` differs from one Python to the next. The price is that a release which changes no
more than a comment does not resume an unfinished run of the release before it; that one finishes it, and finished
datasets are not concerned.
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
    "dataset",  # is a source as well
    "worker",
    "plan/blocks.py",  # which values a row block has
    "config/spec.py",  # how many groups a row has, and how many bits a code
    "arena.py",
    "columns.py",
    "dtypes.py",
    "export_names.py",  # the mark in what is exported, and what is read as no dataset
)
EXPORTS = ("export",)  # decide bytes of what is written for other programs, with those above
# Decide what a calibration writes, with those of a dataset.
CALIBRATES = (
    "calibration",
    "models",
    "loader",  # fills models
)
# Decide what a training finds, with those of a calibration, of which it needs no more than what fills and runs models.
TRAINS = ("distillation",)
# Within those, what runs a model and makes no dataset.
DECIDES_NOTHING = ("kernels/products",)
_PACKAGE = Path(__file__).parent


@cache
def code_digest() -> str:
    """A dataset's, of this package: 16 hex digits, the same for equal code on any machine."""
    return digest_of(_PACKAGE, DECIDES_BYTES)


@cache
def export_digest() -> str:
    """An export's, in the same way: also of what reads and quantizes, since that decides what is written."""
    return digest_of(_PACKAGE, (*DECIDES_BYTES, *EXPORTS))


@cache
def calibration_digest() -> str:
    """A calibration's, in the same way: also of what runs the model."""
    return digest_of(_PACKAGE, (*DECIDES_BYTES, *CALIBRATES))


@cache
def training_digest() -> str:
    """A training's, in the same way: its workers have to make the same steps."""
    return digest_of(_PACKAGE, (*DECIDES_BYTES, *CALIBRATES, *TRAINS))


def digests() -> tuple[str, ...]:
    """All of this package's: of equal packages whichever is asked for is among them."""
    return code_digest(), export_digest(), calibration_digest(), training_digest()


def digest_of(package: Path, decisive: Iterable[str]) -> str:
    """package: the folder of arrowquant_dist's modules, in a checkout or installed. decisive: the folders and modules
    in it that count."""
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
