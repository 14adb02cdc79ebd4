"""What the reader of PyTorch files uses of torch beyond its public API.

Written for torch 2.13. Under FakeTensorMode `torch.load` takes no memory for values, and `_checkpoint_offset` of a
storage tells which record of the archive it comes from. If a torch lacks either, torch_storages.py finds the same by
public names, for which it reads the pickle twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from arrowquant_dist.checkpoint.torch_zip import TorchArchive, rebuild_archive

# Names that torch.save writes into a state dict's pickle: `module name` of private functions, which cannot change since
# existing files contain them. Those in NAMES_IN_FILES are called by weights_only for plain tensors, the others make
# objects without plain values. pickle_scan.py only compares texts with them; nothing here looks them up in torch.
NAMES_IN_FILES = (
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._tensor _rebuild_from_type_v2",
    "torch.serialization _get_layout",
)
SPECIAL_NAMES_IN_FILES = {
    "torch._utils _rebuild_sparse_tensor": "sparse tensors",
    "torch._utils _rebuild_qtensor": "tensors that torch has quantized",
    "torch._utils _rebuild_nested_tensor": "nested tensors",
    "torch._utils _rebuild_meta_tensor_no_storage": "tensors without values (meta device)",
    "torch._utils _rebuild_wrapper_subclass": "tensor subclasses",
}
_MODULE, _OFFSET = "torch._subclasses.fake_tensor", "_checkpoint_offset"


def is_there() -> bool:
    """Whether this torch has the private names that are used here."""
    import torch

    return _fake_mode() is not None and hasattr(torch.UntypedStorage, _OFFSET)


@contextmanager
def loaded(archive: TorchArchive) -> Iterator[tuple[Any, Callable[[Any], str | None]]]:
    """What weights_only makes of the pickle, and a function that tells the key of a tensor's storage."""
    import torch

    buffer, keys = rebuild_archive(archive)
    fake_mode = _fake_mode()
    assert fake_mode is not None  # noqa: S101 - is_there() was asked
    with _without_log(), fake_mode():
        yield (
            torch.load(buffer, map_location="meta", weights_only=True),  # whatever device it was saved from
            lambda tensor: keys.get(getattr(tensor.untyped_storage(), _OFFSET)),
        )


def _fake_mode() -> Callable[[], Any] | None:
    try:
        found: Callable[[], Any] | None = getattr(import_module(_MODULE), "FakeTensorMode", None)
    except ImportError:
        return None
    return found


@contextmanager
def _without_log() -> Iterator[None]:
    """Silences fake mode, which logs a traceback for each impossible tensor; our error says it once."""
    logger = logging.getLogger(_MODULE)
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled
