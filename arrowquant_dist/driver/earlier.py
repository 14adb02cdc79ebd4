"""What an earlier run, or another driver, left at the target, and whether it belongs to this plan.

A manifest counts if it belongs to the run whose plan is at the target. Any other manifest was left by a driver that
slept while its run was overwritten: the target is then treated as if it had no manifest, and the run that publishes
next removes it.
"""

from __future__ import annotations

from arrowquant_dist.config import DISTILLATION_KEY
from arrowquant_dist.driver.outcome import Outcome
from arrowquant_dist.errors import TargetConflict
from arrowquant_dist.plan import Plan, differences, is_same_work, plan_from_table
from arrowquant_dist.report.render import read_report
from arrowquant_dist.target.clear import sweep
from arrowquant_dist.target.layout import PLAN_PATH, Listing
from arrowquant_dist.target.manifest import MANIFEST_PATH, Manifest
from arrowquant_dist.target.plan_file import PlannedRun, RunIdentity
from arrowquant_dist.target.target import Target, being_cleared, overwritten


def refuse_difference(dataset: Target, planned: PlannedRun, plan: Plan) -> None:
    """Raises TargetConflict, saying what differs, if the plan at the target is not `plan`."""
    if planned.identity.fingerprint != plan.fingerprint:
        there = plan_from_table(planned.table)
        if DISTILLATION_KEY in there.config:
            raise TargetConflict(
                "the target holds what `distill` made, which `quantize` neither resumes nor repairs; run `distill` "
                "again (with --overwrite if the dataset is damaged), or choose another target",
                uri=dataset.store.uri,
            )
        changes = "; ".join(differences(there, plan))
        raise TargetConflict(
            f"the target holds another plan's run ({changes}); choose another target, or --overwrite to replace it",
            uri=dataset.store.uri,
        )


def refuse_other_run(dataset: Target, plan: Plan, found: Listing) -> None:
    """Raises TargetConflict if the target holds a dataset or a run of another plan."""
    manifest = dataset.manifest() if MANIFEST_PATH in found else None
    planned = dataset.planned() if PLAN_PATH in found else None
    if manifest is not None and _counts(manifest, planned):
        _refuse_other_work(dataset, manifest, planned, plan)
    elif planned is not None:
        refuse_difference(dataset, planned, plan)


def finished_outcome(
    dataset: Target, plan: Plan, found: Listing, run: RunIdentity | None = None
) -> Outcome | None:
    """The outcome recorded with a published, complete dataset; None if no manifest counts. Losing attempts and other
    leftovers beside its parts are removed.

    run: the run that the dataset has to belong to; None if this driver has not started one yet. Raises TargetConflict
    if the dataset belongs to another plan or another run, IncompleteDataset if one of its objects is gone or has
    another size.
    """
    if MANIFEST_PATH not in found:
        return None
    manifest, planned = dataset.manifest(), dataset.planned()
    if manifest is None:  # it was there a moment ago
        raise being_cleared(dataset.store.uri)
    if run is not None and (planned is None or planned.identity != run):
        raise overwritten(dataset.store.uri)
    if not _counts(manifest, planned):
        return None
    _refuse_other_work(dataset, manifest, planned, plan)
    if planned is None:  # a copy of a dataset: no run is at work here, so there are no losing attempts
        dataset.refuse_missing_parts(manifest, found)
    else:
        sweep(dataset, manifest, found)
    dataset.refuse_missing_files(manifest, found)
    report = read_report(dataset.store, manifest)
    sidecars = tuple(file.path for file in manifest.sidecars)
    return Outcome(report, already_finished=True, target=dataset.store.uri, sidecars=sidecars)


def published_outcome(dataset: Target, plan: Plan, found: Listing, run: RunIdentity) -> Outcome:
    """The outcome of another driver of this run, which has published the dataset. Raises TargetConflict if the
    dataset has been removed again."""
    outcome = finished_outcome(dataset, plan, found, run)
    if outcome is None:
        raise being_cleared(dataset.store.uri)
    return outcome


def _counts(manifest: Manifest, planned: PlannedRun | None) -> bool:
    """Whether the manifest counts. It does if there is no plan, since datasets are copied without their `run/`."""
    return planned is None or manifest.is_of(planned.identity)


def _refuse_other_work(dataset: Target, manifest: Manifest, planned: PlannedRun | None, plan: Plan) -> None:
    """Raises TargetConflict if the finished dataset is not what was asked for. The same work done by another version
    of the code is accepted."""
    if manifest.fingerprint == plan.fingerprint:
        return
    if planned is None or planned.identity.fingerprint != manifest.fingerprint:
        message = "another plan's dataset is here; choose another target, or --overwrite"
        raise TargetConflict(message, uri=dataset.store.uri)
    if not is_same_work(plan_from_table(planned.table), plan):
        refuse_difference(dataset, planned, plan)
