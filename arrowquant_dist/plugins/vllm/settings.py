"""The settings of the plugin that a user of vLLM passes: `model_loader_extra_config`, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrowquant_dist.config import parse_size
from arrowquant_dist.config.checks import check_options, shown
from arrowquant_dist.errors import IncompleteDataset, InvalidConfig, listed
from arrowquant_dist.export_names import SERVED_PATH
from arrowquant_dist.location import location
from arrowquant_dist.storage.uris import is_local, real_place
from arrowquant_dist.strict_json import parse_json

if TYPE_CHECKING:
    from arrowquant_dist.dataset.dataset import Dataset
    from arrowquant_dist.loader.opened import OpenDataset

MEMORY_BUDGET = "2GiB"
# Advice on layers whose codes vLLM cannot use: unlike an export, nothing is written that could be quantized anew.
SERVE_DECODED = "arrowquant vllm TARGET FOLDER --decoded, with which vLLM gets the model in 16 bits"

# Advice for users who edited a small file of a directly served dataset on purpose.
_IF_MEANT = "edit it in a folder that arrowquant vllm TARGET FOLDER --decoded makes, and serve that folder"


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """Settings of a load. target: the dataset's URI. storage_options: options for fsspec. memory_nbytes: most bytes in
    flight in each process."""

    target: str
    memory_nbytes: int
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, values: Mapping[str, Any], model: str) -> LoadSettings:
        """Checks the user's settings. values: the settings. model: what vLLM was given as the model, a folder of small
        files.

        The dataset is `target`, or the one that the folder's arrowquant.json names, or the folder itself.
        """
        unknown = sorted(map(str, set(values) - {"target", "storage_options", "memory_budget"}))
        if unknown:
            message = (
                f"model_loader_extra_config has {listed(unknown)}; it takes only target, storage_options and "
                "memory_budget"
            )
            raise InvalidConfig(message)
        target = values.get("target")
        return cls(
            target=named_target(model) if target is None else location(target, "target"),
            memory_nbytes=parse_size(values.get("memory_budget", MEMORY_BUDGET), "memory_budget"),
            storage_options=check_options("storage_options", values.get("storage_options", {})),
        )

    def open(self, memory_nbytes: int) -> OpenDataset:
        """Opens the dataset, with at most memory_nbytes in flight at a time. Everything that is read is verified."""
        from arrowquant_dist.config import Storage
        from arrowquant_dist.loader.opened import LoaderSettings, OpenDataset

        storage = Storage(self.storage_options)
        settings = LoaderSettings(
            self.target, storage, memory_nbytes, verify=True, dequantize=True, dtype=None, workers=None
        )
        return OpenDataset(settings, is_local=is_local(self.target))


def named_target(model: str) -> str:
    """Returns the dataset that belongs to a folder of small files, unless the user names another."""
    file = Path(model) / SERVED_PATH
    if not file.is_file():
        return model
    hint = "make the folder again, or name the target in model_loader_extra_config"
    try:
        content = parse_json(file.read_bytes())
    except ValueError as error:
        raise InvalidConfig(f"is not valid JSON ({error}); {hint}", uri=str(file)) from error
    target = content.get("target") if isinstance(content, dict) else None
    if not isinstance(target, str):
        raise InvalidConfig(f"target is {shown(target)}, not a string; {hint}", uri=str(file))
    return target


def check_small_files(model: str, dataset: Dataset) -> None:
    """Raises CorruptWeights if vLLM was given the dataset itself as the model and one of its small files, which vLLM
    has read already, is not what the run copied; IncompleteDataset if one is missing.

    The files of a folder that `arrowquant vllm` made were verified when it made them, and their owner may edit them.
    """
    from arrowquant_dist.target.manifest import LOST_SIDECAR

    manifest = dataset.manifest
    if manifest is None or real_place(model) != real_place(dataset.uri):
        return
    for path in manifest.read_sidecars:
        uri = dataset.store.url(path)
        if not dataset.store.exists(path):
            raise IncompleteDataset(LOST_SIDECAR, uri=uri)
        manifest.check_sidecar(path, dataset.store.read(path), uri, _IF_MEANT)
