"""vLLM's model loader for our datasets: runs the model's own `load_weights` on tensors that are read when they are
used.

Every process of vLLM imports this, whatever it loads, so modules that read datasets are only imported to load a model.
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


_log = init_logger("vllm.arrowquant")  # vLLM shows logs under its own name
_WAITING_SHARE = 4  # a fourth of the memory budget is for parts that were read ahead and wait for the model


class ArrowQuantModelLoader(BaseModelLoader):  # type: ignore[misc]
    """Fills a model of vLLM from a dataset. Each process reads what its parameters take, and verifies it.

    The quantization in the model's config decides what the model gets: without one, decoded values in the source's
    dtype; with compressed-tensors, the codes as `arrowquant export --format compressed-tensors` writes them.
    """

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(load_config)
        self._values = dict(load_config.model_loader_extra_config)
        LoadSettings.of(self._values, "")  # reports invalid settings before a model is made
        check_load_config(load_config)

    def download_model(self, model_config: ModelConfig) -> None:
        """Does nothing: no weight is stored on this machine."""

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Fills the model. Raises ModelMismatch if the dataset does not fill it; CorruptWeights with the layer's name,
        or the small file's if the dataset itself is the model; InvalidConfig for arguments that have no meaning
        here."""
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
        load_weights: Any = model.load_weights  # every model of vLLM has it
        filled, taken = FillCount(dict(model.named_parameters())), TakenParts(_ranks())
        with weights as pairs, filled:
            loaded = load_weights(taken.counted(pairs))
        _log.info("Read and verified %d bytes for the weights of this process", opened.dataset.nbytes_read)
        _check_filled(model, loaded, opened.dataset.uri)
        _check_whole(model, filled.partly(), opened.dataset.uri)
        _check_taken(model, dict(taken.cut_off()), opened.dataset.uri)


def _ranks() -> int:
    """Returns the most processes that a weight is split among: experts are split among all data-parallel replicas."""
    parallel = get_current_vllm_config().parallel_config
    return int(parallel.world_size_across_dp // parallel.pipeline_parallel_size)


def _quantization(model_config: ModelConfig) -> Mapping[str, Any] | None:
    """Returns the model's settings for compressed-tensors; None if it has none, or those of a quantization by vLLM."""
    found = getattr(model_config.hf_config, "quantization_config", None)
    if found is None:
        return None
    config: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    method = config.get("quant_method")
    if method != "compressed-tensors":
        message = (
            f"config.json says that the model is quantized by {method}, but datasets are served as compressed-tensors "
            "or decoded; make a folder for vLLM: arrowquant vllm TARGET FOLDER"
        )
        raise ModelMismatch(message, uri=model_config.model)
    return config


def _check_filled(model: nn.Module, loaded: Collection[str] | None, target: str) -> None:
    """Raises ModelMismatch for parameters without weights. loaded: names of parameters that `load_weights` reports as
    filled; None if the model does not report them."""
    if loaded is None:
        return
    missing = {name for name, value in model.named_parameters() if value.numel()} - set(loaded)
    for prefix, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        # Scales of the cache have defaults, and weights that vLLM quantizes while loading have scales of its own.
        if isinstance(method, BaseKVCacheMethod) or getattr(method, "uses_meta_device", False):
            missing -= {f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)}
    if missing:
        message = (
            f"{type(model).__name__} has parameters without weights in the dataset: {listed(sorted(missing))}; give "
            "vLLM the config of the model that was quantized"
        )
        raise ModelMismatch(message, uri=target)


def _check_whole(model: nn.Module, partly: Mapping[str, Collection[str]], target: str) -> None:
    """Raises ModelMismatch for partly filled parameters. partly: {parameter: layers that it was filled from}."""
    if not partly:
        return
    (name, layers), *others = partly.items()
    more = f" (the same is true of {listed(sorted(other for other, _ in others))})" if others else ""
    message = (
        f"{type(model).__name__} has parameters for which the dataset lacks layers: {name} is not filled by "
        f"{listed(sorted(layers))} alone{more}; quantize the whole model, or give vLLM the config of this one"
    )
    raise ModelMismatch(message, uri=target)


def _check_taken(model: nn.Module, cut_off: Mapping[str, tuple[int, ...]], target: str) -> None:
    """Raises ModelMismatch for weights that parameters are too small for. cut_off: {weight: its shape}."""
    if cut_off:
        found = listed(sorted(f"{name} {[*shape]}" for name, shape in cut_off.items()))
        message = (
            f"{type(model).__name__} takes only a part of what the dataset has: {found}; give vLLM the config of the "
            "model that was quantized"
        )
        raise ModelMismatch(message, uri=target)
