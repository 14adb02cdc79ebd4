"""report/evaluation.json and .md of a target: one evaluation for each set of texts, the newest last."""

from __future__ import annotations

import json
from collections.abc import Sequence

from arrowquant_dist.config import DEFAULT_STORAGE, Storage
from arrowquant_dist.errors import InvalidCheckpoint, NotFound
from arrowquant_dist.location import Location, location
from arrowquant_dist.report.evaluated import evaluations_markdown
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.storage.base import Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.strict_json import parse_json
from arrowquant_dist.target.manifest import Manifest

EVALUATION_PATH = "report/evaluation.json"
EVALUATION_PAGE_PATH = "report/evaluation.md"
EVALUATION_VERSION = 1
_AGAIN = "remove the file, and evaluate again"


def dataset_identity(manifest: Manifest) -> str:
    """What tells a dataset from another one at the same target: the run's id, or the fingerprint for datasets of the
    first releases."""
    return manifest.run or manifest.fingerprint


def load_evaluations(uri: Location, storage: Storage = DEFAULT_STORAGE) -> tuple[Evaluation, ...]:
    """The evaluations of the finished dataset at `uri`; empty if there is no manifest that says which dataset is there.
    Raises what `read_evaluations` raises."""
    store = open_store(location(uri, "uri"), storage)
    try:
        manifest = Manifest.read(store)
    except NotFound:
        return ()
    return read_evaluations(store, manifest)


def read_evaluations(store: Store, manifest: Manifest) -> tuple[Evaluation, ...]:
    """The evaluations of this dataset; those of another dataset that was here before are left out.

    Raises InvalidCheckpoint if the file is damaged or was written by a newer release.
    """
    try:
        content = store.read(EVALUATION_PATH)
    except NotFound:
        return ()
    try:
        found = _parsed(content)
    except InvalidCheckpoint as error:
        raise InvalidCheckpoint(error.message, uri=store.url(EVALUATION_PATH)) from error
    return tuple(one for one in found if one.dataset == dataset_identity(manifest))


def merged(earlier: Sequence[Evaluation], new: Evaluation) -> tuple[Evaluation, ...]:
    """`earlier` and `new`, which replaces the evaluation with the same texts and the same model, if there is one."""

    def same(other: Evaluation) -> bool:
        return (other.texts.digest, other.model) == (new.texts.digest, new.model)

    return (*(one for one in earlier if not same(one)), new)


def evaluation_files(evaluations: Sequence[Evaluation]) -> dict[str, bytes]:
    """{path under the target: content} of the JSON and the Markdown file."""
    values = {
        "evaluation_version": EVALUATION_VERSION,
        "evaluations": [one.to_dict() for one in evaluations],
    }
    return {
        EVALUATION_PATH: json.dumps(values, indent=2, allow_nan=False).encode() + b"\n",
        EVALUATION_PAGE_PATH: evaluations_markdown(evaluations).encode(),
    }


def _parsed(content: bytes) -> list[Evaluation]:
    try:
        values = parse_json(content)
    except ValueError as error:
        raise InvalidCheckpoint(f"the evaluations are damaged ({error}); {_AGAIN}") from error
    if not isinstance(values, dict) or not isinstance(values.get("evaluations"), list):
        raise InvalidCheckpoint(f"JSON, but not with evaluations; {_AGAIN}")
    version = values.get("evaluation_version")
    if type(version) is not int or version < 1:
        raise InvalidCheckpoint(f"its evaluation_version is not one that any release writes; {_AGAIN}")
    if version > EVALUATION_VERSION:
        raise InvalidCheckpoint(
            f"evaluation_version is {version}, this release reads up to {EVALUATION_VERSION}; update arrowquant-dist"
        )
    return [
        Evaluation.from_dict(one) if isinstance(one, dict) else _refuse() for one in values["evaluations"]
    ]


def _refuse() -> Evaluation:
    raise InvalidCheckpoint(f"one of the evaluations is not an object; {_AGAIN}")
