"""`python -m tests.benchmarks`: measures this program next to others in one run, with a table and a picture. Sections,
given by name, measure one thing in depth, both sides in the same run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from tests.benchmarks import (
    accuracy,
    big,
    calibrating,
    cluster,
    compensating,
    exporting,
    files,
    half_quadratic,
    kernels,
    limits,
    loading,
    minilm,
    object_store,
    pages,
    peaks,
    planning,
    reducing,
    serving,
    sizing,
    streaming,
    verifying,
)
from tests.benchmarks.overview import run as overview
from tests.benchmarks.overview.words import markdown
from tests.benchmarks.table import Table, show

_SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Table]]] = {
    "minilm": lambda _: minilm.tables(),
    "accuracy": lambda given: accuracy.tables(given.texts),
    "distilled": lambda given: accuracy.minilm_tables(given.texts, accuracy.DISTILLED_WAYS),
    "process": lambda given: minilm.process_tables(given.runs),
    "kernels": lambda given: kernels.tables(given.side, given.runs),
    "hqq": lambda given: half_quadratic.tables(given.side, given.runs),
    "gptq": lambda given: compensating.tables((given.side // 4, given.side), given.runs),
    "calibrate": lambda given: calibrating.tables(given.calibration_texts, given.folder),
    "size": lambda given: sizing.tables(given.params, given.runs, given.folder),
    "files": lambda given: files.tables(given.params, given.runs, given.folder, given.idle),
    "cluster": lambda given: cluster.tables(given.models, given.runs, given.folder),
    "planning": lambda given: planning.tables(given.runs, given.folder),
    "reducing": lambda given: reducing.tables(given.layers, given.folder),
    "pages": lambda given: pages.tables(pages.LAYERS, given.runs),
    "verifying": lambda given: verifying.tables(given.parts, given.folder),
    "object-store": lambda given: object_store.tables(given.params, given.runs, given.folder),
    "serving": lambda given: serving.tables(given.side, max(given.runs, 15)),
    "loading": lambda given: loading.tables(given.runs, given.params, given.folder),
    "export": lambda given: exporting.tables(
        given.nbytes, given.runs, given.folder, given.formats, given.places
    ),
    "peaks": lambda given: peaks.tables(given.budgets, given.folder),
    "streaming": lambda given: streaming.tables(given.params, given.runs, given.folder, given.runai),
    "limits": lambda given: limits.tables(given.side * given.side, given.runs, given.folder),
}
_ALL = "all"
_PARAMS = 750_000_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the overview or the sections. arguments: command line arguments; None: those of the program."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "sections",
        nargs="*",
        metavar="SECTION",
        help=f"{', '.join(_SECTIONS)}, or all; default: the overview",
    )
    parser.add_argument("--runs", type=int, default=5, help="number of rounds")
    parser.add_argument(
        "--params",
        type=int,
        help=f"weights of the checkpoint; default: {overview.PARAMS:,} in the overview, {_PARAMS:,} in sections",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/benchmarks"),
        metavar="FOLDER",
        help=f"folder for {', '.join(overview.NAMES)}",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        default=[],
        metavar="PYTHON",
        help="further interpreters with peers installed, for the overview: some peers exclude each other",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=["1B"],
        choices=big.MODELS,
        help="models for `cluster`; the first is the one that the others are compared with",
    )
    parser.add_argument(
        "--side",
        type=int,
        default=4096,
        help="rows and columns of the matrix for `kernels`, `hqq`, `gptq` and `serving`",
    )
    parser.add_argument("--layers", type=int, default=reducing.LAYERS, help="number of layers for `reducing`")
    parser.add_argument("--parts", type=int, default=verifying.PARTS, help="number of parts for `verifying`")
    parser.add_argument(
        "--nbytes", type=int, default=exporting.NBYTES, help="stored bytes of the dataset for `export`"
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        default=exporting.FORMATS,
        choices=exporting.FORMATS,
        help="formats of `export`",
    )
    parser.add_argument(
        "--places", nargs="+", default=exporting.PLACES, choices=exporting.PLACES, help="places of `export`"
    )
    parser.add_argument(
        "--budgets",
        type=int,
        nargs="+",
        default=[64, 256],
        help="memory budgets of the loaders in `peaks`, in MiB",
    )
    parser.add_argument(
        "--runai",
        default=sys.executable,
        metavar="PYTHON",
        help="interpreter with Run:ai's streamer installed, for `streaming`",
    )
    parser.add_argument(
        "--texts", metavar="FILE", help="texts for `accuracy`, of other kinds than the package's"
    )
    parser.add_argument("--calibration-texts", type=int, default=500, help="number of texts for `calibrate`")
    parser.add_argument("--folder", help="folder for temporary files, on the disk to measure")
    parser.add_argument(
        "--idle",
        type=float,
        default=0.0,
        help="seconds to wait before each job of `files`, so that its memory is cold",
    )
    given = parser.parse_args(arguments)
    unknown = [name for name in given.sections if name not in {*_SECTIONS, _ALL}]
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(_SECTIONS)} and {_ALL}")
    if not given.sections:
        _overview(given)
        return
    given.params = given.params or _PARAMS
    names = _SECTIONS if _ALL in given.sections else given.sections
    show(chain.from_iterable(_SECTIONS[name](given) for name in names))


def _overview(given: argparse.Namespace) -> None:
    settings = overview.Settings(
        runs=given.runs,
        side=given.side,
        params=given.params or overview.PARAMS,
        texts=given.calibration_texts,
        pythons=given.peers,
        folder=given.folder,
    )
    found = overview.measure(settings)
    print(markdown(found))
    print("written to", *overview.write(found, given.out))


if __name__ == "__main__":
    main()
