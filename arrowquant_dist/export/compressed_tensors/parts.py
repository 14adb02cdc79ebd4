"""Turns a dataset's layers into those of the output: by folder, tied layers once, experts one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from arrowquant_dist.config.checks import shown
from arrowquant_dist.config.families import Families
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.errors import InvalidConfig, listed
from arrowquant_dist.export.compressed_tensors.choose import OutputLayer
from arrowquant_dist.export.compressed_tensors.experts import (
    block_renamed,
    is_fused,
    turned_modules,
    unfused,
    why_not_unfused,
)
from arrowquant_dist.export.compressed_tensors.linear import why_not_linear
from arrowquant_dist.export.format import Model
from arrowquant_dist.strict_json import parse_json

_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder of the output with a model of its own: the top folder, or a component's.

    path: "" for the top folder. prefix: prefix of its layers' names in the dataset. config: its config.json.
    """

    path: str
    prefix: str
    config: Mapping[str, Any]

    @property
    def config_path(self) -> str:
        return f"{self.path}/config.json" if self.path else "config.json"

    @property
    def texts(self) -> list[Mapping[str, Any]]:
        """The config, and the configs of text models in it."""
        return [
            self.config,
            *(self.config[key] for key in _TEXT_PARTS if isinstance(self.config.get(key), dict)),
        ]

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @property
    def dtype(self) -> str | None:
        """The dtype in which transformers and vLLM keep the model, if the config gives one."""
        said = [text.get(key) for text in self.texts for key in ("dtype", "torch_dtype")]
        return next((str(dtype).removeprefix("torch.") for dtype in said if dtype is not None), None)

    @property
    def ties(self) -> bool:
        """Whether the config says that the head's weights are the embedding's."""
        return any(text.get("tie_word_embeddings") is True for text in self.texts)


def model_folders(model: Model) -> list[ModelFolder]:
    """Returns the folders that have a transformers model's config.json."""
    found = []
    for component in model.components:
        path = f"{component.path}/config.json" if component.path else "config.json"
        data = model.read(path)
        try:
            config = parse_json(data) if data is not None else None
        except ValueError as error:
            message = f"it is not valid JSON ({error}); correct it"
            raise InvalidConfig(message, uri=model.dataset.store.url(path)) from error
        if isinstance(config, dict) and config.get("model_type") is not None:
            _refuse_other_types(config, model.dataset.store.url(path))
            found.append(ModelFolder(component.path, component.prefix, config))
    return found


def _refuse_other_types(config: Mapping[str, Any], uri: str) -> None:
    """Raises InvalidConfig if a field that decides how layers are written has a wrong type."""
    texts = [config, *(config[key] for key in _TEXT_PARTS if isinstance(config.get(key), dict))]
    for text in texts:
        for name in ("model_type", "dtype", "torch_dtype"):
            value = text.get(name)
            if value is not None and not (isinstance(value, str) and value):
                raise InvalidConfig(
                    f"{name} has to be a string that is not empty, not {shown(value)}; correct it", uri=uri
                )


def parts_of(model: Model, folder: ModelFolder) -> tuple[list[OutputLayer], list[str]]:
    """Returns the layers of a folder, named without its prefix, and notes for people on what is left out."""
    names = {
        name.removeprefix(folder.prefix): layer
        for name, layer in model.names.items()
        if model.component_of(name).path == folder.path
    }
    notes = []
    if folder.ties:
        for alias in [name for name, layer in names.items() if layer.name != f"{folder.prefix}{name}"]:
            if alias.endswith(_HEAD) or names[alias].name.endswith(_HEAD):
                notes.append(f"{alias} is left out: config.json ties it to {names[alias].name}")
                del names[alias]
    families = Families(list(names.values()))
    shapes = {name: layer.shape for name, layer in names.items()}
    fused_types = {name for name in names if is_fused(name, shapes[name])}
    renamed = any(_can_be_unfused(name, names[name], folder, shapes) for name in fused_types)
    parts = []
    for name, layer in names.items():
        if name in fused_types:
            made = list(_experts(name, layer, folder, shapes))
        else:
            made = [_whole(name, layer, _why_never(name, layer, folder, families))]
        parts += [_renamed(part, folder) if renamed else part for part in made]
    _refuse_twice(parts, model)
    return parts, notes


def _refuse_twice(parts: Iterable[OutputLayer], model: Model) -> None:
    """Raises InvalidConfig if an unfused expert or a renamed layer has the name of another layer."""
    twice = sorted(name for name, count in Counter(part.name for part in parts).items() if count > 1)
    if twice:
        message = f"the output would have {listed(twice)} twice; rename one of them in the source"
        raise InvalidConfig(message, uri=model.dataset.uri)


def _renamed(part: OutputLayer, folder: ModelFolder) -> OutputLayer:
    name = block_renamed(part.name, folder.model_type)
    return replace(part, name=name)


def _whole(name: str, layer: StoredLayer, never: str | None) -> OutputLayer:
    return OutputLayer(name, layer, layer.shape, 0, layer.rows, never)


def _can_be_unfused(
    name: str, layer: StoredLayer, folder: ModelFolder, shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    return why_not_unfused(name, layer.row_dims, folder.model_type, shapes) is None


def _experts(
    name: str, layer: StoredLayer, folder: ModelFolder, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[OutputLayer]:
    problem = why_not_unfused(name, layer.row_dims, folder.model_type, shapes)
    if problem is not None:
        yield from _decoded_experts(name, layer, problem, turned_modules(name, folder.model_type, shapes))
        return
    for expert in unfused(name, layer.shape, folder.model_type):
        yield OutputLayer(expert.name, layer, expert.shape, expert.row_start, expert.row_stop)


def _decoded_experts(
    name: str, layer: StoredLayer, problem: str, modules: tuple[str, ...]
) -> Iterator[OutputLayer]:
    """Yields one part if readers take the tensor as it is, otherwise one per expert. modules: from `turned_modules`."""
    if not modules:
        yield _whole(name, layer, problem)
        return
    block, _, own = name.removesuffix(".weight").rpartition(".")
    experts, inputs, columns = layer.shape
    for i in range(experts):
        rows = (i * inputs, (i + 1) * inputs)
        yield OutputLayer(f"{block}.{i}.{own}", layer, (inputs, columns), *rows, problem, modules)


def _why_never(name: str, layer: StoredLayer, folder: ModelFolder, families: Families) -> str | None:
    """Returns why a layer cannot be a quantized Linear of the output, or None."""
    never = why_not_linear(name, layer.shape, folder.model_type)
    if never is not None:
        return never
    family = families.why(layer.name, layer.shape)
    if family is not None:
        return f"a {family}, which readers do not load quantized"
    if name.endswith(_HEAD) and folder.ties:
        return "a head that config.json ties to the embedding"
    return None
