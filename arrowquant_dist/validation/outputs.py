"""Compares the outputs of a dataset's model with those of the original, if a model can be built."""

from __future__ import annotations

from arrowquant_dist.config import RunConfig
from arrowquant_dist.errors import InvalidConfig, MissingDependency, ModelMismatch, NotFound
from arrowquant_dist.evaluation.run import run_evaluation
from arrowquant_dist.location import Location
from arrowquant_dist.machine import memory_nbytes
from arrowquant_dist.report import text
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.texts import Texts
from arrowquant_dist.texts.steps import StepCallback

_READING_NBYTES = 2 << 30  # memory for reading, in addition to the models
_MODELS_NBYTES = 8  # memory per parameter for two models in float32
USUAL_SHARE = 0.8  # share of the machine's memory that the models may take if no texts were asked for
# Errors that mean that no model can be built and given texts.
_NO_MODEL = (InvalidConfig, MissingDependency, ModelMismatch, NotFound)


def measured_outputs(
    source: Location,
    target: str,
    texts: Texts,
    run: RunConfig,
    params: int,
    most_nbytes: int | None,
    show: StepCallback,
) -> tuple[Evaluation | None, str]:
    """The evaluation, which is also written to the dataset's own report, or None and the reason. params: number of
    values. most_nbytes: largest memory that both models may take; None: no limit."""
    needed = _MODELS_NBYTES * params
    if most_nbytes is not None and needed > most_nbytes:
        has = text.nbytes(memory_nbytes())
        return None, (
            f"both models take up to {text.nbytes(needed)} in float32, and this machine has {has}; pass texts to "
            "measure them anyway"
        )
    storages = (run.source_storage, run.target_storage)
    try:
        return run_evaluation(source, target, texts, storages, _READING_NBYTES, show), ""
    except _NO_MODEL as error:
        return None, str(error)
