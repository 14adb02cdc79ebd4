"""What an earlier run, or another driver, left at the target, and whether it is this plan's."""

from __future__ import annotations

from arrowquant_dist.driver.outcome import Outcome
from arrowquant_dist.errors import TargetConflict
from arrowquant_dist.plan import Plan, differences, is_same_work, plan_from_table
from arrowquant_dist.report.render import read_report
from arrowquant_dist.target.clear import sweep
from arrowquant_dist.target.layout import PLAN_PATH, Listing
from arrowquant_dist.target.manifest import MANIFEST_PATH, Manifest
from arrowquant_dist.target.plan_file import PlannedRun
from arrowquant_dist.target.target import Target, being_cleared


def refuse_difference(dataset: Target, planned: PlannedRun, plan: Plan) -> None:
    """TargetConflict, saying what differs, where the plan at the target is another one."""
    if planned.identity.fingerprint != plan.fingerprint:
        changes = "; ".join(differences(plan_from_table(planned.table), plan))
        raise TargetConflict(
            f"the target holds another plan's run ({changes}); choose another target, or --overwrite to replace it",
            uri=dataset.store.uri,
        )


def refuse_other_run(dataset: Target, plan: Plan, found: Listing) -> None:
    """TargetConflict where the target holds a dataset, or a run, that is another plan's."""
    if MANIFEST_PATH in found:
        manifest = dataset.manifest()
        if manifest is not None:
            _refuse_other_work(dataset, manifest, plan)
    elif PLAN_PATH in found:
        planned = dataset.planned()
        if planned is not None:
            refuse_difference(dataset, planned, plan)


def finished_outcome(dataset: Target, plan: Plan, found: Listing) -> Outcome:
    """The outcome of whoever published the dataset, which is all there; what lost against its parts is removed.

    TargetConflict where it is another plan's, IncompleteDataset where a part of it is gone.
    """
    manifest = dataset.manifest()
    if manifest is None:  # it was there a moment ago
        raise being_cleared(dataset.store.uri)
    _refuse_other_work(dataset, manifest, plan)
    sweep(dataset, manifest, found)
    return Outcome(read_report(dataset.store), already_finished=True, target=dataset.store.uri)


def _refuse_other_work(dataset: Target, manifest: Manifest, plan: Plan) -> None:
    """Of a finished dataset: where other code has done the same work, it is what was asked for."""
    if manifest.fingerprint == plan.fingerprint:
        return
    planned = dataset.planned()
    if planned is None or planned.identity.fingerprint != manifest.fingerprint:
        message = "another plan's dataset is here; choose another target, or --overwrite"
        raise TargetConflict(message, uri=dataset.store.uri)
    if not is_same_work(plan_from_table(planned.table), plan):
        refuse_difference(dataset, planned, plan)
