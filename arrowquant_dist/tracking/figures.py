"""What is reported of a run to a tracking server: plain names and values, none of which is a secret."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from arrowquant_dist.errors import shortened
from arrowquant_dist.reduce.facts import HostFacts
from arrowquant_dist.reduce.figures import ReportFigures, Stat
from arrowquant_dist.report.evaluation import Evaluation
from arrowquant_dist.storage.uris import redact
from arrowquant_dist.texts import Texts

_VALUE_CHARS = 500  # every server accepts this many
_SECTIONS = ("run", "transfer", "versions", "texts", "settings", "config")


def params_of(asked: Mapping[str, Any]) -> dict[str, str]:
    """{name: value} of the settings and of the versions in use; places are without credentials and queries."""
    host = HostFacts.here()
    values = {**asked, "python": host.python, "versions": host.versions}
    return {name: shortened(redact(value), _VALUE_CHARS) for name, value in _flat(values)}


def facts_of_texts(texts: Texts) -> dict[str, Any]:
    """Values that identify the texts."""
    return {"name": texts.name, "count": len(texts), "digest": texts.digest}


def metrics_of(report: ReportFigures) -> dict[str, float | None]:
    """{group/name: value} of a dataset's report.

    Sizes are in bytes, of the weights in the source and in the part files; accuracy is that of the decoded weights;
    seconds are those of the driver's phases, and of the workers', summed over all workers.
    """
    totals, accuracy, timing = report.totals, report.accuracy, report.timing
    found: dict[str, float | None] = {
        "size/source_nbytes": totals.source_nbytes,
        "size/stored_nbytes": totals.parts_nbytes,
        "size/compression_vs_source": totals.compression_vs_source,
        "size/compression_vs_fp16": totals.compression_vs_fp16,
        "size/bits_per_weight": 8 * totals.parts_nbytes / totals.params if totals.params else None,
        "size/layers": totals.layers,
        "size/params": totals.params,
        "seconds/wall": timing.wall_seconds,
        "memory/peak_nbytes": timing.peak_memory_nbytes,
    }
    found |= {f"seconds/{phase}": seconds for phase, seconds in report.run.phases.items()}
    found |= {f"worker_seconds/{phase}": seconds for phase, seconds in timing.phases.items()}
    if accuracy is not None:
        found |= _stat("cosine", accuracy.cosine) | _stat("sqnr_db", accuracy.sqnr_db)
        found |= {
            "accuracy/overall_cosine": accuracy.overall_cosine,
            "accuracy/max_error": accuracy.max_error,
        }
    return found


def evaluation_metrics(found: Evaluation) -> dict[str, float | None]:
    """{group/name: value} of the texts, and of the outputs' figures by their names in report/evaluation.json."""
    figures = asdict(found.figures) if found.figures is not None else {}
    return {
        **{f"outputs/{name}": value for name, value in figures.items()},
        "texts/count": found.texts.texts,
        "texts/tokens": found.texts.tokens,
        "texts/cut": found.texts.cut,
        "seconds/wall": found.seconds,
    }


def finite_metrics(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """The metrics whose value is a finite number."""
    return {
        name: float(value) for name, value in metrics.items() if value is not None and math.isfinite(value)
    }


def _stat(name: str, stat: Stat | None) -> dict[str, float | None]:
    if stat is None:
        return {}
    return {f"accuracy/{name}_mean": stat.mean, f"accuracy/{name}_min": stat.min}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values: mappings of settings are flattened to dotted names, other values are JSON."""
    for name, value in values.items():
        if isinstance(value, Mapping) and name in _SECTIONS:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)
