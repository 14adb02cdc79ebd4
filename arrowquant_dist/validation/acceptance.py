"""The criteria of a validation: checks, and figures compared with their targets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from arrowquant_dist.errors import counted
from arrowquant_dist.validation.figures import (
    CATEGORIES,
    FAILED,
    MODEL,
    NOT_MEASURED,
    PASSED,
    Check,
    Criterion,
    DatasetFigures,
    SourceFigures,
    Status,
)
from arrowquant_dist.validation.measures import BY_KEY
from arrowquant_dist.validation.targets import Targets
from arrowquant_dist.verify import VerifyReport

WHOLE, SOUND = "every layer is in the dataset", "verified: every checksum, nothing missing"
_SHOWN_PROBLEMS = 3


def criteria_of(
    datasets: Sequence[DatasetFigures], checks: Iterable[Check], targets: Targets
) -> tuple[Criterion, ...]:
    """All criteria, in the order of CATEGORIES. A criterion whose figure could not be measured is not met."""
    found = [*_of_checks(checks), *_of_targets(datasets, targets)]
    return tuple(sorted(found, key=lambda one: CATEGORIES.index(one.category)))


def check_all_there(name: str, dataset: DatasetFigures, source: SourceFigures) -> Check:
    """Checks that the dataset has as many layers and values as the source."""
    totals = dataset.report.totals
    found = f"{counted(totals.layers, 'layer')} with {counted(totals.params, 'value')}"
    asked = f"{counted(source.layers, 'layer')} with {counted(source.params, 'value')}"
    status: Status = PASSED if found == asked else FAILED
    return Check(MODEL, WHOLE, name, status, found if found == asked else f"{found}; the source has {asked}")


def check_sound(name: str, found: VerifyReport) -> Check:
    said = f"{counted(found.rows, 'row')} in {counted(found.objects, 'object')}, read by byte ranges and as Parquet"
    if found.is_sound:
        return Check(MODEL, SOUND, name, PASSED, said)
    problems = "; ".join(f"{one.kind}: {one}" for one in found.problems[:_SHOWN_PROBLEMS])
    return Check(MODEL, SOUND, name, FAILED, f"{counted(len(found.problems), 'problem')}: {problems}")


def _of_checks(checks: Iterable[Check]) -> Iterator[Criterion]:
    results: dict[Status, str] = {PASSED: "yes", FAILED: "no", NOT_MEASURED: NOT_MEASURED}
    for one in checks:
        yield Criterion(
            one.category, one.name, one.name, one.config, "yes", results[one.status], one.status, one.said
        )


def _of_targets(datasets: Sequence[DatasetFigures], targets: Targets) -> Iterator[Criterion]:
    for dataset in datasets:
        for key, target in targets.of(dataset.name).items():
            measurable = BY_KEY[key]
            value = measurable.figure(dataset)
            shown = measurable.shown_target(target)
            if value is None:
                why = measurable.why_not(dataset)
                status: Status = NOT_MEASURED
                result, said = str(NOT_MEASURED), why
            else:
                result, said = measurable.form(value), measurable.about(dataset)
                status = PASSED if measurable.holds(value, target) else FAILED
            yield Criterion(
                measurable.category, key, measurable.label, dataset.name, shown, result, status, said
            )
