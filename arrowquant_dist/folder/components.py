"""The folders that a model's own configs name: modules of sentence-transformers, components of a diffusers pipeline.

Their weights are in the dataset with the folder's path as a prefix (`linear.weight` of `2_Dense/model.safetensors` as
`2_Dense.linear.weight`), and their small files are copied, so that everything can still be found through the configs:
names with the prefix of a folder that `modules.json` or `model_index.json` names belong to that folder, all others to
the folder at the top. `checkpoint/parts.py` ensures that no name is ambiguous.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.folder.index import is_plain_path
from arrowquant_dist.folder.listing import SourceFolder, is_hidden
from arrowquant_dist.folder.names import weight_kind

MODULES, PIPELINE = "modules.json", "model_index.json"
_ROUTERS = ("router_config.json", "config.json")
# The modules of sentence-transformers that cannot work without weights.
_WITH_WEIGHTS = {
    *(
        "Transformer",
        "MLMTransformer",
        "CLIPModel",
        "Dense",
        "LayerNorm",
        "WeightedLayerPooling",
        "StaticEmbedding",
    ),
    *("SparseStaticEmbedding", "SparseAutoEncoder", "WordEmbeddings", "CNN", "LSTM"),
}
_MOST = 1_000


@dataclass(frozen=True, slots=True)
class Component:
    """A folder of the source. path: relative to the source's folder, "" for that folder itself. named_by: path of the
    config that names it. needs_weights: whether it is useless without weights."""

    path: str
    named_by: str
    needs_weights: bool

    @property
    def prefix(self) -> str:
        """The prefix of its layers' names."""
        return f"{self.path.replace('/', '.')}." if self.path else ""


TOP = Component("", "", needs_weights=False)


def named_components(folder: SourceFolder) -> list[Component]:
    """The source's parts: its own folder, and those that its modules.json or model_index.json names.

    The folder itself is not included if these configs name only others: weights in it are then copies in another
    format. Raises InvalidCheckpoint for configs that can't be read.
    """
    pipeline = folder.read_json(PIPELINE)
    if isinstance(pipeline, dict) and "_class_name" in pipeline:
        return list(_of_pipeline(pipeline, folder))
    modules = folder.read_json(MODULES)
    if isinstance(modules, list) and any(_is_module(module) for module in modules):
        return _of_modules(modules, folder)
    return [TOP]


def _of_modules(modules: Sequence[Any], folder: SourceFolder) -> list[Component]:
    if len(modules) > _MOST or not all(_is_module(module) for module in modules):
        _refuse("not a list of modules with a path and a type each; download it again", folder, MODULES)
    found: dict[str, Component] = {}
    for module in modules:
        for component in _of_module(_plain(module["path"]), module["type"], folder):
            if component.path not in found or component.needs_weights:
                found[component.path] = component
    first = next(iter(found))
    if "" not in found and not (found[first].needs_weights or _has_weights(folder, first)):
        found[""] = TOP
    return list(found.values())


def _is_module(value: Any) -> bool:
    """Whether it is like `{"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}`."""
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("path", "type"))


def _has_weights(folder: SourceFolder, path: str) -> bool:
    return any(weight_kind(info.path.rpartition("/")[2]) for info in folder.files(path))


def _plain(path: str) -> str:
    """The path without redundant slashes and dots; "" for the folder itself."""
    return "/".join(part for part in path.split("/") if part not in ("", ".")) if path[:1] != "/" else path


def _of_module(path: str, kind: str, folder: SourceFolder) -> Iterator[Component]:
    """A module; for a router also the modules that it chooses from, which are below it."""
    _check_path(path, folder, MODULES)
    yield Component(path, MODULES, kind.rpartition(".")[2] in _WITH_WEIGHTS)
    if kind.rpartition(".")[2] not in ("Router", "Asym"):
        return
    for name in _ROUTERS:
        config = f"{path}/{name}" if path else name
        settings = folder.read_json(config)
        types = settings.get("types") if isinstance(settings, dict) else None
        if isinstance(types, dict):
            for inner, inner_kind in types.items():
                _check_path(inner, folder, config)
                inner_path = f"{path}/{inner}" if path else inner
                yield Component(inner_path, config, str(inner_kind).rpartition(".")[2] in _WITH_WEIGHTS)
            return


def _of_pipeline(pipeline: dict[str, Any], folder: SourceFolder) -> Iterator[Component]:
    """The components of a pipeline, like `"unet": ["diffusers", "UNet2DConditionModel"]`; nulls mean there is none."""
    for name, value in pipeline.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) != 2 or None in value:
            continue
        if not all(isinstance(part, str) for part in value):
            continue
        _check_path(name, folder, PIPELINE)
        entries = folder.entries(name)
        # Models have a config.json; the configs of schedulers, tokenizers and processors have other names.
        is_model = any(info.path == f"{name}/config.json" for info in entries.files)
        yield Component(name, PIPELINE, needs_weights=is_model or not entries.files)


def _check_path(path: str, folder: SourceFolder, named_by: str) -> None:
    if path and (not is_plain_path(path) or any(is_hidden(part) for part in path.split("/"))):
        _refuse(f"it names the folder {path!r}, which is not a plain path inside this one", folder, named_by)


def _refuse(message: str, folder: SourceFolder, path: str) -> NoReturn:
    raise InvalidCheckpoint(message, uri=folder.store.url(path))
