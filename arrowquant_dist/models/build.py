"""Builds a model of transformers with traced tensors: transformers itself builds, converts, ties and initialises it."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arrowquant_dist.config.checks import shown
from arrowquant_dist.config.patterns import matcher
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.errors import InvalidConfig, MissingDependency, ModelMismatch, listed, shortened
from arrowquant_dist.models.fill import Slot, slots_of
from arrowquant_dist.models.quiet import ReportFilter, without_account
from arrowquant_dist.models.source import LayerSource
from arrowquant_dist.models.traced import Call, Origin, Traced, UntraceableOperation, sources_of

_FIRST_VERSION = 5


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of transformers.

    dtype: as in from_pretrained. attention: a name, or {part of the model: name}; None for transformers' choice.
    initialize: patterns of parameters that the layers may lack. leave_over: patterns of layers that the model may have
    no place for.
    """

    dtype: torch.dtype | str | None
    attention: str | Mapping[str, str] | None
    initialize: tuple[str, ...]
    leave_over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Built:
    """A model, its traced tensors, and the changes to make to them in place once they have values. left_over: names of
    layers that the model has no place for."""

    model: Any
    slots: list[Slot]
    changes: list[Call]
    left_over: tuple[str, ...] = ()


def config_of(folder: Path, model_class: Any, uri: str) -> Any:
    """Returns the model's config, of the class's own type if it has one. Code that a config.json names is not run."""
    transformers = imported_transformers()
    from huggingface_hub.errors import StrictDataclassError  # raised for values of a wrong type

    own = getattr(model_class, "config_class", None)
    reader = transformers.AutoConfig if own is None else own
    try:
        config = reader.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        message = f"transformers cannot read its config.json ({_said(error)}); use a model type that it has built in"
        raise InvalidConfig(message, uri=uri) from error
    _refuse_quantized(config, uri)
    return config


def given_config(config: Any, model_class: Any) -> Any:
    """Returns a copy of the config that a caller passes instead of the dataset's, either itself or as the folder of its
    config.json. Raises InvalidConfig if it is not a config, or not one of the class."""
    transformers = imported_transformers()
    if isinstance(config, str | os.PathLike):
        folder = Path(config)
        if not (folder / "config.json").is_file():
            raise InvalidConfig(
                "config is not a folder with a config.json; pass such a folder, or a config", uri=str(folder)
            )
        return config_of(folder, model_class, str(folder))
    if not isinstance(config, transformers.PreTrainedConfig):
        message = f"config is {shown(config)}; pass a config of transformers or the folder of a config.json"
        raise InvalidConfig(message)
    own = getattr(model_class, "config_class", None)
    if own is not None and not isinstance(config, own):
        message = f"config is a {type(config).__name__}, but {model_class.__name__} takes a {own.__name__}; pass one"
        raise InvalidConfig(message)
    _refuse_quantized(config, "config")
    return copy.deepcopy(config)


def _refuse_quantized(config: Any, uri: str) -> None:
    if getattr(config, "quantization_config", None) is not None:
        message = (
            "its config.json has a quantization_config: the layers are codes of another quantizer that were kept as "
            "they are; quantize the full-precision model, or read the layers with WeightLoader"
        )
        raise InvalidConfig(message, uri=uri)


def class_of(model_class: Any, config: Any, uri: str) -> Any:
    """Returns the class that an Auto class selects for a config; a concrete class is returned as it is."""
    transformers = imported_transformers()
    if isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel):
        return model_class
    if not (isinstance(model_class, type) and hasattr(model_class, "from_config")):
        message = "model_class must be an Auto class or a model's class of transformers, such as AutoModelForCausalLM"
        raise InvalidConfig(message)
    try:
        with torch.device("meta"):
            return type(model_class.from_config(config, trust_remote_code=False))
    except (ValueError, KeyError, OSError, AttributeError) as error:
        kind = model_class.__name__
        message = f"{kind} cannot build a model from its config.json ({_said(error)}); pass the model's class"
        raise InvalidConfig(message, uri=uri) from error
    except ImportError as error:
        raise _missing_package(error, uri) from error


def build_model(
    model_class: Any, config: Any, layers: Mapping[str, StoredLayer], source: LayerSource, wanted: Wanted
) -> Built:
    """Builds a model. layers: by their names in the checkpoint, without the prefix of a part.

    Raises ModelMismatch where the layers and the model's parameters do not match.
    """
    changes: list[Call] = []
    state = {name: _traced(layer, source, changes) for name, layer in layers.items()}
    options = {} if wanted.attention is None else {"attn_implementation": wanted.attention}
    uri = source.uri
    table = ReportFilter()
    try:
        with without_account(table):
            model, found = model_class.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype="auto" if wanted.dtype is None else wanted.dtype,
                ignore_mismatched_sizes=True,  # they are reported, and refused below by name
                output_loading_info=True,
                local_files_only=True,
                **options,
            )
    except ImportError as error:
        raise _missing_package(error, uri) from error
    except (AttributeError, TypeError, OSError) as error:
        if not _has_own_from_pretrained(model_class):
            raise
        message = (
            f"{model_class.__name__} has a from_pretrained of its own, which fails without a checkpoint's files "
            f"({_said(error)}); build it from its config and fill it with WeightLoader(…).load_into"
        )
        raise InvalidConfig(message, uri=uri) from error
    except (UntraceableOperation, ValueError, RuntimeError) as error:
        if wanted.attention is not None and "attn_implementation" in str(error):
            message = f"attn_implementation is {shown(wanted.attention)}, which {model_class.__name__} does not support"
            raise InvalidConfig(f"{message} ({_said(error)}); leave it out", uri=uri) from error
        reason = shortened(table.failed, 300) if table.failed is not None else _said(error)
        message = f"transformers cannot build {model_class.__name__} from these layers ({reason}); pass their own class"
        raise ModelMismatch(message, uri=uri) from error
    slots = slots_of(model)
    left = _check(model, found, layers, slots, wanted, uri)
    return Built(model, slots, changes, left)


def _has_own_from_pretrained(model_class: Any) -> bool:
    transformers = imported_transformers()
    return bool(
        model_class.from_pretrained.__func__ is not transformers.PreTrainedModel.from_pretrained.__func__
    )


def imported_transformers() -> Any:
    """Imports transformers. Raises MissingDependency for versions before 5, which load models in another way."""
    import transformers

    if int(transformers.__version__.partition(".")[0]) < _FIRST_VERSION:
        message = (
            f"load_model needs transformers {_FIRST_VERSION}, but {transformers.__version__} is installed; "
            "upgrade it"
        )
        raise MissingDependency(message)
    return transformers


def _traced(layer: StoredLayer, source: LayerSource, changes: list[Call]) -> Traced:
    dtype: torch.dtype = getattr(torch, layer.dtype)

    def differs(other: str) -> bool:
        return source.differ(layer, source.layers[other])

    return Traced.of(
        Origin(layer.name, torch.empty(layer.shape, dtype=dtype, device="meta"), differs, changes)
    )


def _check(
    model: Any,
    found: Mapping[str, Any],
    layers: Mapping[str, StoredLayer],
    slots: Sequence[Slot],
    wanted: Wanted,
    uri: str,
) -> tuple[str, ...]:
    """Returns the names of layers left over that `wanted` allows. Raises ModelMismatch for those it does not allow."""
    used = {name for slot in slots for name in sources_of(slot.traced.node)}
    allowed = [matcher(pattern) for pattern in wanted.initialize]
    missing = sorted(name for name in found["missing_keys"] if not any(may_be(name) for may_be in allowed))
    left = sorted(
        name for name in found["unexpected_keys"] if name not in layers or layers[name].name not in used
    )
    allowed_left = [matcher(pattern) for pattern in wanted.leave_over]
    refused = [name for name in left if not any(may_be(name) for may_be in allowed_left)]
    shapes = sorted(
        f"{shortened(n)!r} has shape {[*theirs]} but {[*ours]} in the model"
        for n, theirs, ours in found["mismatched_keys"]
    )
    problems = []
    if shapes:
        problems.append(listed(shapes))
    if missing:
        problems.append(f"missing from the dataset, so they would have random values: {listed(missing)}")
    if refused:
        problems.append(f"in the dataset, but not in the model: {listed(refused)}")
    if problems:
        made_for = getattr(model.config, "architectures", None)
        hint = f"its config.json names {listed(made_for)}" if made_for else "pass the class of the checkpoint"
        message = (
            f"{type(model).__name__} does not match the dataset; {'; '.join(problems)}; {hint}; "
            "name what may be random in initialize=[…] and what may be left out in leave_out=[…]"
        )
        raise ModelMismatch(message, uri=uri)
    return tuple(left)


def _missing_package(error: ImportError, uri: str) -> MissingDependency:
    message = (
        f"the model needs a package that is not installed ({_said(error)}); install it, or drop what needs it"
    )
    return MissingDependency(message, uri=uri)


def _said(error: BaseException) -> str:
    return shortened(" ".join(str(error).split()), 300)
