"""A model of transformers, filled from a dataset.

transformers builds the model, with tensors that have no values (`traced.py`), and moves them into it by the same
conversion that it makes for a checkpoint: renamed, merged, split, tied. Its own account of what is missing and left
over is checked before a weight is read (`build.py`). Then the layers are read, each once, straight to where they
belong (`fill.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from arrowquant_dist.arena import Slabs
from arrowquant_dist.config import Activations, Storage, parse_size
from arrowquant_dist.config.checks import check_bool, check_options
from arrowquant_dist.config.patterns import matcher
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.loader.loads import Loads
from arrowquant_dist.loader.opened import LoaderSettings, OpenDataset
from arrowquant_dist.loader.stream import ProgressCallback
from arrowquant_dist.location import Location, location
from arrowquant_dist.models.arguments import (
    check_attention,
    check_dtype,
    check_patterns,
    check_subfolder,
    refuse_unknown,
)
from arrowquant_dist.models.files import SmallFiles, small_files
from arrowquant_dist.progress.callers import told_to
from arrowquant_dist.progress.runs import shown_layers
from arrowquant_dist.storage.uris import is_local

if TYPE_CHECKING:
    import torch

    from arrowquant_dist.models.build import Built


def load_model(
    target: Location,
    model_class: Any,
    *,
    config: Any = None,
    memory_budget: str | int = "2GiB",
    dtype: torch.dtype | str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    verify: bool = True,
    subfolder: str = "",
    initialize: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    attn_implementation: str | Mapping[str, str] | None = None,
    codes: bool = False,
    activations: Activations | None = None,
    progress: ProgressCallback | bool | None = True,
    **others: object,
) -> Any:
    """Builds a transformers model with the decoded weights of a dataset, as `from_pretrained` would build it from the
    source.

    target: of a run, local or a URL; config.json and generation_config.json come from there.
    model_class: an Auto class, such as AutoModelForCausalLM, or the class of a model.
    config: a config of transformers, or the local folder of a config.json; the dataset's config.json is then not read.
    memory_budget: the most memory that is used in addition to the model, in bytes or as text such as "2GiB".
    dtype, attn_implementation: as for from_pretrained; by default those of the config.
    storage_options: fsspec's.
    subfolder: for a model whose parts are in folders.
    initialize: words, globs or /regexes/ of parameters that the dataset may lack, such as a new head; these are random.
    leave_out: the same for layers that the model need not have.
    verify: the checksums of everything that is read, including config.json and generation_config.json. False verifies
        nothing, not even weights; to use another config.json, pass it as `config`, and weights are still verified.
    codes: keep the weights of linear layers and embeddings as codes in memory if they are whole rows of quantized
        layers (QuantLinear, QuantEmbedding); all others are decoded. Decoded values are rounded to the source's dtype,
        codes are not: with a wider `dtype` than that, products use unrounded weights.
    activations: "int8", together with codes, multiplies whole numbers, as in QuantLinear.
    progress: True shows progress in a terminal or a notebook, and only there; False shows none; a function is called
        with the bytes of the model that are loaded, the total (weights kept as codes count as stored), and the layer,
        after each layer or part of one, in the calling thread. transformers' own bar and report, which say nothing
        about what is read, are not shown.

    Nothing is read unless everything fits: ModelMismatch names what is missing, left over or of another shape.
    CorruptWeights names the layer. Code that comes with a model is not run.
    """
    from arrowquant_dist.models.build import Wanted, build_model, class_of, given_config
    from arrowquant_dist.modules.linear import check_activations

    refuse_unknown("load_model", others)
    place = location(target, "target")
    check_bool("verify", verify)
    check_dtype(dtype)
    check_attention(attn_implementation)
    check_bool("codes", codes)
    check_subfolder(subfolder)
    if activations is not None and not codes:
        raise InvalidConfig(
            "activations can only be used with codes=True; pass both, or leave out activations"
        )
    check_activations(activations)
    for key, patterns in (("initialize", initialize), ("leave_out", leave_out)):
        check_patterns(key, patterns)
    limit = parse_size(memory_budget, "memory_budget")
    storage = Storage({} if storage_options is None else check_options("storage_options", storage_options))
    with told_to(progress, shown_layers, "load") as told, small_files(place, storage, verify=verify) as files:
        if files.is_pipeline and not subfolder:
            message = "a diffusers pipeline has several models; pass subfolder= for one, such as text_encoder"
            raise InvalidConfig(message, uri=files.uri)
        settings = LoaderSettings(place, storage, limit, verify, dequantize=True, dtype=None, workers=None)
        opened = OpenDataset(settings, is_local=is_local(place))
        config = (
            _config(files, subfolder, model_class) if config is None else given_config(config, model_class)
        )
        files.check_generation(subfolder)
        layers = _layers(opened, files, subfolder, leave_out)
        wanted = Wanted(dtype, attn_implementation, tuple(initialize))
        loads = Loads(opened, settings) if codes else Loads(opened, settings, Slabs().take)
        built = build_model(class_of(model_class, config, files.uri), config, layers, loads, wanted)
        if codes:
            _fill_with_codes(built, loads, activations, told)
        else:
            _fill(built, loads, told)
        _finish(built.model, files.folder / subfolder, files.uri)
    return built.model


def _config(files: SmallFiles, subfolder: str, model_class: Any) -> Any:
    """The dataset's own."""
    from arrowquant_dist.models.build import config_of

    folder = files.part(subfolder)
    files.check_config(subfolder)
    return config_of(folder, model_class, files.uri)


def _fill(built: Built, loads: Loads, progress: ProgressCallback | None) -> None:
    from arrowquant_dist.models.fill import Filling
    from arrowquant_dist.models.progress import ModelProgress

    filling = Filling(built.slots, built.changes, loads)
    filling.fill(ModelProgress(progress, filling.nbytes))


def _fill_with_codes(
    built: Built, loads: Loads, activations: Activations | None, progress: ProgressCallback | None
) -> None:
    from arrowquant_dist.models.codes import Coding, coded_slots
    from arrowquant_dist.models.fill import Filling
    from arrowquant_dist.models.progress import ModelProgress

    coded = coded_slots(built.slots, built.changes, loads.opened.dataset.layers)
    own = {id(each.slot) for each in coded}
    filling = Filling([slot for slot in built.slots if id(slot) not in own], built.changes, loads)
    coding = Coding(coded, loads)
    told = ModelProgress(progress, filling.nbytes + coding.nbytes)
    filling.fill(told)
    coding.put(built.model, activations, told)


def _layers(
    opened: OpenDataset, files: SmallFiles, subfolder: str, leave_out: Sequence[str]
) -> dict[str, StoredLayer]:
    """Those of one part of the model by their names in its own checkpoint."""
    unwanted = [matcher(pattern) for pattern in leave_out]
    names = [name for names in opened.names.values() for name in names]
    found = [name for name in names if files.is_of_part(name, subfolder)]
    prefix = files.prefix(subfolder)
    return {
        name.removeprefix(prefix): opened.dataset.layer(name)
        for name in found
        if not any(is_unwanted(name) for is_unwanted in unwanted)
    }


def _finish(model: Any, folder: Any, uri: str) -> None:
    """What from_pretrained takes from the folder beside weights and config."""
    model.config.name_or_path = uri
    model.name_or_path = uri
    if model.can_generate() and hasattr(model, "adjust_generation_fn"):
        model.adjust_generation_fn(
            None,
            from_auto_class=False,
            from_pipeline=None,
            pretrained_model_name_or_path=str(folder),
            cache_dir=None,
            force_download=False,
            proxies=None,
            local_files_only=True,
            token=None,
            revision="main",
            subfolder="",
            trust_remote_code=False,
        )
