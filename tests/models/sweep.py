"""Each family of transformers as a tiny model: saved, quantized to int8, loaded, and compared with from_pretrained.

python -m tests.models.sweep [FAMILY …]              prints one JSON line per family, with the outcome
python -m tests.models.sweep --codes [FAMILY …]      the same with codes in memory, compared with the decoded model
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from arrowquant_dist import load_model
from arrowquant_dist.errors import ArrowQuantError
from tests.models.families import classes_of, families, tiny_config, tiny_model
from tests.models.served import Served, coded_differences, coded_modules, differences, serve_saved

SAME, OTHER, REFUSED = "same", "other values", "refused by load_model"
NO_CLASS, NOT_BUILT, OWN_TRIP = "no Auto class", "not built", "own round trip"


class Outcome(NamedTuple):
    """The outcome for a family. kind: SAME is right; NO_CLASS, NOT_BUILT and OWN_TRIP are failures of transformers
    itself. why: its message."""

    family: str
    kind: str
    why: str = ""


def outcome_of(family: str, number: int = 0) -> Outcome:
    """The outcome for the family's model class `number`; 0 is the base model."""
    return _outcome(family, number, _against_from_pretrained)


def coded_outcome_of(family: str, number: int = 0) -> Outcome:
    """The same for a model with codes in memory, whose tensors, once decoded, have to be those of the decoded model.
    If all is right, `why` says how many modules have codes."""
    return _outcome(family, number, _codes_against_decoded)


def _outcome(family: str, number: int, compare: Callable[[str, Served, Any], Outcome]) -> Outcome:
    classes = classes_of(family)
    if len(classes) <= number:
        return Outcome(family, NO_CLASS)
    try:
        model_class = getattr(transformers, classes[number])
        model = tiny_model(tiny_config(family), model_class)
    except Exception as error:  # noqa: BLE001 - whatever a family's own code does with these numbers
        return Outcome(family, NOT_BUILT, f"{type(error).__name__}: {_line(error)}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save_pretrained(Path(folder) / "source")
        except Exception as error:  # noqa: BLE001 - of save_pretrained
            return Outcome(family, OWN_TRIP, f"{type(error).__name__}: {_line(error)}")
        try:
            served = serve_saved(Path(folder))
        except Exception as error:  # noqa: BLE001 - none may come, and the sweep goes on
            return Outcome(family, REFUSED, f"{type(error).__name__}: {_line(error)}")
        return compare(family, served, model_class)


def _against_from_pretrained(family: str, served: Served, model_class: Any) -> Outcome:
    try:
        theirs, found = model_class.from_pretrained(served.decoded, output_loading_info=True)
    except Exception as error:  # noqa: BLE001 - of from_pretrained
        return Outcome(family, OWN_TRIP, f"{type(error).__name__}: {_line(error)}")
    lost = sorted(str(name) for names in found.values() for name in names)
    if lost:
        return Outcome(family, OWN_TRIP, f"missing, unexpected or of another shape: {', '.join(lost[:5])}")
    try:
        ours = load_model(served.target, model_class)
    except Exception as error:  # noqa: BLE001 - none may come, and the sweep goes on
        return Outcome(family, REFUSED, f"{type(error).__name__}: {_line(error)}")
    found = differences(ours, theirs)
    return Outcome(family, OTHER, ", ".join(found[:5])) if found else Outcome(family, SAME)


def _codes_against_decoded(family: str, served: Served, model_class: Any) -> Outcome:
    try:
        plain = load_model(served.target, model_class)
    except ArrowQuantError as error:
        return Outcome(family, OWN_TRIP, f"not by its decoded values either: {_line(error)}")
    try:
        coded = load_model(served.target, model_class, codes=True)
    except Exception as error:  # noqa: BLE001 - none may come, and the sweep goes on
        return Outcome(family, REFUSED, f"{type(error).__name__}: {_line(error)}")
    found = coded_differences(coded, plain)
    if found:
        return Outcome(family, OTHER, ", ".join(found[:5]))
    return Outcome(family, SAME, f"{len(coded_modules(coded))} modules of codes")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with_codes = "--codes" in sys.argv
    for name in [argument for argument in sys.argv[1:] if argument != "--codes"] or families():
        print(json.dumps(coded_outcome_of(name) if with_codes else outcome_of(name)), flush=True)  # noqa: T201
