"""vLLM's model loader for datasets of ours: the model's own `load_weights`, given tensors that are read where they go.

Every process of vLLM imports this, whatever it loads: what reads datasets is imported when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from arrowquant_dist.errors import ModelMismatch, listed
from arrowquant_dist.plugins.vllm.arguments import check_draft, check_load_config, check_model_config
from arrowquant_dist.plugins.vllm.settings import LoadSettings, check_small_files

if TYPE_CHECKING:
    from torch import nn
    from vllm.config import ModelConfig
    from vllm.config.load import LoadConfig


_log = init_logger("vllm.arrowquant")  # vLLM shows what is below its own name
_WAITING_SHARE = 4  # of the memory budget is for what was read ahead and waits for the model


class ArrowQuantModelLoader(BaseModelLoader):  # type: ignore[misc]
    """Fills a model of vLLM from a dataset; each process reads what its parameters take, and verifies it.

    What the model's config says of its quantization decides what is handed over: nothing, decoded values in the
    source's dtype; compressed-tensors, the codes as `arrowquant export --format compressed-tensors` writes them.
    """

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(load_config)
        self._values = dict(load_config.model_loader_extra_config)
        LoadSettings.of(self._values, "")  # what is wrong with it is said before a model is made
        check_load_config(load_config)

    def download_model(self, model_config: ModelConfig) -> None:
        """Nothing: no weight is stored on this machine."""

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Raises ModelMismatch where the dataset does not fill the model; CorruptWeights with the layer's name, or
        the small file's where the dataset itself is the model; InvalidConfig for arguments that cannot be honoured."""
        from arrowquant_dist.plugins.vllm.codes import coded_weights
        from arrowquant_dist.plugins.vllm.filled import FillCount
        from arrowquant_dist.plugins.vllm.taken import TakenParts
        from arrowquant_dist.plugins.vllm.weights import decoded_weights

        check_model_config(model_config)
        served = get_current_vllm_config().model_config
        check_draft(model_config, served, names_target="target" in self._values)
        settings = LoadSettings.of(self._values, model_config.model)
        waiting_nbytes = settings.memory_nbytes // _WAITING_SHARE
        opened = settings.open(settings.memory_nbytes - waiting_nbytes)
        check_small_files(model_config.model, opened.dataset)
        config = _quantization(model_config)
        weights = (
            decoded_weights(opened, waiting_nbytes)
            if config is None
            else coded_weights(settings, opened, config, waiting_nbytes)
        )
        load_weights: Any = model.load_weights  # which every model of vLLM has
        filled, taken = FillCount(dict(model.named_parameters())), TakenParts(_ranks())
        with weights as pairs, filled:
            loaded = load_weights(taken.counted(pairs))
        _log.info("Read and verified %d bytes for the weights of this process", opened.dataset.nbytes_read)
        _check_filled(model, loaded, opened.dataset.uri)
        _check_whole(model, filled.partly(), opened.dataset.uri)
        _check_taken(model, dict(taken.cut_off()), opened.dataset.uri)


def _ranks() -> int:
    """Among so many processes a weight is split at most: experts among those of all data-parallel replicas."""
    parallel = get_current_vllm_config().parallel_config
    return int(parallel.world_size_across_dp // parallel.pipeline_parallel_size)


def _quantization(model_config: ModelConfig) -> Mapping[str, Any] | None:
    """The model's settings of compressed-tensors; None where it has none, or what vLLM quantizes itself."""
    found = getattr(model_config.hf_config, "quantization_config", None)
    if found is None:
        return None
    config: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    method = config.get("quant_method")
    if method != "compressed-tensors":
        message = (
            f"config.json says that the model is quantized by {method}, and datasets are served as compressed-tensors "
            "or decoded; make a folder for vLLM: arrowquant vllm TARGET FOLDER"
        )
        raise ModelMismatch(message, uri=model_config.model)
    return config


def _check_filled(model: nn.Module, loaded: Collection[str] | None, target: str) -> None:
    """loaded: names of parameters that `load_weights` says it filled, None where the model keeps no account of it."""
    if loaded is None:
        return
    missing = {name for name, value in model.named_parameters() if value.numel()} - set(loaded)
    for prefix, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        # Scales of the cache have defaults; what is quantized by vLLM while it is loaded has scales of its own.
        if isinstance(method, BaseKVCacheMethod) or getattr(method, "uses_meta_device", False):
            missing -= {f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)}
    if missing:
        message = (
            f"{type(model).__name__} has parameters without weights in the dataset: {listed(sorted(missing))}; give "
            "vLLM the config of the model that was quantized"
        )
        raise ModelMismatch(message, uri=target)


def _check_whole(model: nn.Module, partly: Mapping[str, Collection[str]], target: str) -> None:
    """partly: {parameter: the layers that it was filled from}, of those that other layers belong into."""
    if not partly:
        return
    (name, layers), *others = partly.items()
    more = f" (nor are {listed(sorted(other for other, _ in others))})" if others else ""
    message = (
        f"{type(model).__name__} has parameters for which the dataset lacks layers: {name} is not filled by "
        f"{listed(sorted(layers))} alone{more}; quantize the whole model, or give vLLM the config of this one"
    )
    raise ModelMismatch(message, uri=target)


def _check_taken(model: nn.Module, cut_off: Mapping[str, tuple[int, ...]], target: str) -> None:
    """cut_off: {weight: its shape}, of those that parameters are too small for."""
    if cut_off:
        found = listed(sorted(f"{name} {[*shape]}" for name, shape in cut_off.items()))
        message = (
            f"{type(model).__name__} takes a part alone of what the dataset has: {found}; give vLLM the config of the "
            "model that was quantized"
        )
        raise ModelMismatch(message, uri=target)
