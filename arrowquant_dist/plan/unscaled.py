"""Float8 layers whose scales are unknown: an error, unless the config says that they have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arrowquant_dist.checkpoint.table import Checkpoint
from arrowquant_dist.config.checks import invalid
from arrowquant_dist.config.patterns import matcher, nearest_names
from arrowquant_dist.errors import InvalidCheckpoint, listed
from arrowquant_dist.storage.uris import redact

_KEY = "unscaled_float8"


def check_unscaled(checkpoint: Checkpoint, patterns: Sequence[str]) -> None:
    """Raises InvalidCheckpoint, naming the layers that no pattern matches and the tensors beside them; InvalidConfig
    for a pattern that matches no such layer. patterns: those of the config."""
    unscaled = checkpoint.unscaled
    matches = [matcher(pattern) for pattern in patterns]
    for index, match in enumerate(matches):
        if not any(match(name) for name in unscaled):
            near = nearest_names(patterns[index], unscaled)
            hint = f"; did you mean {listed(near)}?" if near else ""
            raise invalid(
                f"{_KEY}[{index}]", f"{patterns[index]!r} matches no float8 layer without scales{hint}"
            )
    unknown = {name: near for name, near in unscaled.items() if not any(match(name) for match in matches)}
    if unknown:
        raise _unknown(checkpoint, unknown)


def _unknown(checkpoint: Checkpoint, unknown: Mapping[str, Sequence[str]]) -> InvalidCheckpoint:
    first, neighbours = next(iter(unknown.items()))
    layer = next((layer for layer in checkpoint.layers if layer.name == first), None)
    others = listed(list(unknown)[1:])
    beside = (
        f"the tensors beside it are {listed(neighbours)}" if neighbours else "there is no tensor beside it"
    )
    message = (
        f"{layer.dtype if layer is not None else 'float8'} whose scale is unknown: {beside}; "
        + (f"the same is true of {others}; " if others else "")
        + f"if the numbers are the weights themselves, set {_KEY}: ['*'] in the config, or list the layers there"
    )
    return InvalidCheckpoint(
        message, layer=first, uri=redact(layer.uri if layer is not None else checkpoint.uri)
    )
