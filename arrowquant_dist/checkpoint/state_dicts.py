"""Finds the model's state dict in a PyTorch checkpoint, among what trainers save beside it.

    {"weight": tensor …}                               itself
    {"state_dict": {…}, "best_acc1": tensor}           what is under a known name; tensors beside it are left out
    {"model": {…}, "optimizer": {…}, "epoch": 3}       a trainer's state is left out
    {"ema": {…}, "optimizer": {…}}                     the only other dict of tensors
    {"model": {…}, "ema": {…}}                         an error: only the user knows which

What is left out is reported. Names are kept as they are (even `module.` of DataParallel), since the model's code
knows them.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from arrowquant_dist.checkpoint.pickle_calls import SAVE_AGAIN
from arrowquant_dist.errors import InvalidCheckpoint, listed

_MAX_NAME = 4096
_STATE_DICT_KEYS = ("state_dict", "model_state_dict")
_NESTED_KEYS = (*_STATE_DICT_KEYS, "model", "module", "net", "weights", "params")
_TRAINING_PARTS = (
    "optim",
    "sched",
    "scaler",
    "callback",
    "loops",
    "config",
    "epoch",
    "param_shapes",
    "precisionplugin",
)
_TRAINING_WORDS = {
    *(
        "amp",
        "rng",
        "random",
        "args",
        "cfg",
        "opt",
        "hparams",
        "hyper",
        "iteration",
        "step",
        "steps",
        "loss",
        "losses",
    ),
    *(
        "metric",
        "metrics",
        "history",
        "hub",
        "meta",
        "extra",
        "sampler",
        "dataloader",
        "datamodule",
        "fragments",
    ),
}


@dataclass(frozen=True, slots=True)
class StateDict:
    """A model's state dict. tensors: {name: tensor}. left_out: keys of the file with tensors of anything else."""

    tensors: Mapping[str, Any]
    left_out: Sequence[str]


def find_state_dict(loaded: Any, uri: str) -> StateDict:
    """The model's state dict in what torch has loaded. Raises InvalidCheckpoint if there is none, or several."""
    import torch

    if not isinstance(loaded, dict):
        what = "tensor" if isinstance(loaded, torch.Tensor) else type(loaded).__name__
        _refuse(f"it holds a {what}, not a dict of tensors; {SAVE_AGAIN}", uri)
    nested = [key for key, value in loaded.items() if isinstance(value, dict) and _has_tensors(value)]
    known = [key for key in nested if key in _NESTED_KEYS and _is_state_dict(loaded[key])]
    is_flat = any(isinstance(value, torch.Tensor) for value in loaded.values())
    if is_flat and not known:
        return StateDict(_tensors(loaded, uri), ())
    candidates = [*known, *(key for key in nested if key not in known and not _is_training_state(key))]
    if not candidates and not nested:
        raise InvalidCheckpoint(f"it holds no tensors; {SAVE_AGAIN}", uri=uri)
    if not candidates:
        _refuse(f"it holds only a trainer's state ({reprlib.repr(nested)}); use the model's file", uri)
    if len(candidates) > 1:
        _refuse(f"it has several dicts of tensors ({reprlib.repr(candidates)}); save the one to use", uri)
    (key,) = candidates
    _refuse_weights_beside(loaded, key, uri)
    _refuse_partitioned(loaded, loaded[key], uri)
    left_out = [repr(other) for other, value in loaded.items() if other != key and _has_tensors(value)]
    return StateDict(_tensors(loaded[key], uri), left_out)


def left_out_note(path: str, left_out: Sequence[str]) -> list[str]:
    """The plan's note about what is left out."""
    return [f"{path} holds more than the model; left out: {listed(left_out)}"] if left_out else []


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    """Whether the dict contains tensors directly, and not only further below."""
    import torch

    return any(isinstance(inner, torch.Tensor) for inner in value.values())


def _is_training_state(key: Any) -> bool:
    if not isinstance(key, str) or key in _NESTED_KEYS:
        return False
    lowered = key.lower()
    words = set(re.split(r"[^a-z0-9]+", lowered))
    return any(part in lowered for part in _TRAINING_PARTS) or bool(words & _TRAINING_WORDS)


def _refuse_weights_beside(loaded: Mapping[Any, Any], key: Any, uri: str) -> None:
    """Raises InvalidCheckpoint if there are matrices beside a model's dict. Smaller tensors there are figures of the
    training, but a matrix may be a weight of a model that has `key` as a part, unless `key` means the whole model."""
    import torch

    beside = [
        name
        for name, value in loaded.items()
        if isinstance(value, torch.Tensor) and sum(n > 1 for n in value.shape) > 1
    ]
    if beside and key not in _STATE_DICT_KEYS:
        message = f"it has tensors in {key!r} and beside it ({reprlib.repr(beside)}); save the model's state dict alone"
        _refuse(message, uri)


def _refuse_partitioned(loaded: Mapping[Any, Any], state: Mapping[Any, Any], uri: str) -> None:
    """Refuses placeholders as DeepSpeed's stage 3 saves them: the values are in all processes' optimizer files."""
    groups = loaded.get("param_shapes")
    for shapes in groups if isinstance(groups, list) else [groups]:
        for name, shape in shapes.items() if isinstance(shapes, dict) else ():
            found = state.get(name)
            if isinstance(shape, tuple) and found is not None and tuple(found.shape) != tuple(shape):
                message = (
                    "it has placeholders, as ZeRO stage 3 saves them; put the model together with zero_to_fp32, "
                    "which lies beside the checkpoint"
                )
                _refuse(message, uri, str(name))


def _has_tensors(value: Any) -> bool:
    """Whether a tensor is anywhere in nested containers. Each container is visited once, however often it is shared."""
    import torch

    seen: set[int] = set()
    todo = [value]
    while todo:
        found = todo.pop()
        if isinstance(found, torch.Tensor):
            return True
        if isinstance(found, dict | list | tuple | set) and id(found) not in seen:
            seen.add(id(found))
            todo.extend(found.values() if isinstance(found, dict) else found)
    return False


def _tensors(state: Mapping[Any, Any], uri: str) -> dict[str, Any]:
    return {name: value for name, value in state.items() if _is_tensor(name, value, uri)}


def _is_tensor(name: Any, value: Any, uri: str) -> bool:
    """Whether an entry is a tensor; False for a harmless setting. Raises InvalidCheckpoint for anything else."""
    import torch

    if isinstance(value, torch.Tensor):
        if not isinstance(name, str) or len(name) > _MAX_NAME or not _is_unicode(name):
            _refuse(f"the name {reprlib.repr(name)} of a tensor is not usable text; {SAVE_AGAIN}", uri)
        return True
    if _has_tensors(value):
        _refuse(
            f"its entry {reprlib.repr(name)} is a {type(value).__name__} of tensors; {SAVE_AGAIN}",
            uri,
        )
    return False


def _is_unicode(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _refuse(message: str, uri: str, layer: str | None = None) -> NoReturn:
    raise InvalidCheckpoint(message, uri=uri, layer=layer)
