"""Each family of transformers as a tiny model: saved, quantized to int8, loaded, and compared with from_pretrained.

python -m tests.models.sweep [FAMILY …]      one JSON line a family: what came of it
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from arrowquant_dist import load_model
from arrowquant_dist.errors import ArrowQuantError
from tests.models.families import classes_of, families, tiny_config, tiny_model
from tests.models.served import differences, serve

SAME, OTHER, REFUSED = "same", "other values", "refused by load_model"
NO_CLASS, NOT_BUILT, OWN_TRIP = "no Auto class", "not built", "own round trip"


class Outcome(NamedTuple):
    """kind: SAME is what it should be; NO_CLASS, NOT_BUILT and OWN_TRIP are transformers' own. why: in its words."""

    family: str
    kind: str
    why: str = ""


def outcome_of(family: str, number: int = 0) -> Outcome:
    """What becomes of the family's model class `number`, 0 for the base model."""
    classes = classes_of(family)
    if len(classes) <= number:
        return Outcome(family, NO_CLASS)
    try:
        model_class = getattr(transformers, classes[number])
        model = tiny_model(tiny_config(family), model_class)
    except Exception as error:  # noqa: BLE001 - whatever a family's own code does with these numbers
        return Outcome(family, NOT_BUILT, f"{type(error).__name__}: {_line(error)}")
    with tempfile.TemporaryDirectory() as folder:
        return _compared(family, model, model_class, Path(folder))


def _compared(family: str, model: Any, model_class: Any, folder: Path) -> Outcome:
    try:
        served = serve(model, folder)
    except ArrowQuantError as error:
        return Outcome(family, REFUSED, _line(error))
    except Exception as error:  # noqa: BLE001 - of save_pretrained
        return Outcome(family, OWN_TRIP, f"{type(error).__name__}: {_line(error)}")
    try:
        theirs, found = model_class.from_pretrained(served.decoded, output_loading_info=True)
    except Exception as error:  # noqa: BLE001 - of from_pretrained
        return Outcome(family, OWN_TRIP, f"{type(error).__name__}: {_line(error)}")
    lost = sorted(str(name) for names in found.values() for name in names)
    if lost:
        return Outcome(family, OWN_TRIP, f"missing, unexpected or of another shape: {', '.join(lost[:5])}")
    try:
        ours = load_model(served.target, model_class)
    except ArrowQuantError as error:
        return Outcome(family, REFUSED, _line(error))
    found = differences(ours, theirs)
    return Outcome(family, OTHER, ", ".join(found[:5])) if found else Outcome(family, SAME)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in sys.argv[1:] or families():
        print(json.dumps(outcome_of(name)), flush=True)  # noqa: T201
