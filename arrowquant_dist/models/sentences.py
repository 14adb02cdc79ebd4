"""A model of sentence-transformers, filled from a dataset.

sentence-transformers itself builds it, from the dataset's small files and weights that are holes (`stand_in.py`): its
modules, prompts and pooling are what it makes of the source. Then each module gets its values: what is a model of
transformers as `load_model` fills one, all else by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from arrowquant_dist.config import Storage, parse_size
from arrowquant_dist.config.checks import check_bool, check_options
from arrowquant_dist.config.patterns import matcher
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.prefetch import load_now
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.errors import InvalidConfig, MissingDependency, ModelMismatch, listed, shortened
from arrowquant_dist.folder.components import MODULES
from arrowquant_dist.loader.loads import Loads
from arrowquant_dist.loader.opened import LoaderSettings, OpenDataset
from arrowquant_dist.loader.stream import ProgressCallback
from arrowquant_dist.location import Location, location
from arrowquant_dist.models.arguments import check_dtype, check_patterns, refuse_unknown
from arrowquant_dist.models.files import SmallFiles, small_files
from arrowquant_dist.models.made import FilledModel, MadeTensor, made_of, plain_origin
from arrowquant_dist.models.progress import ModelProgress
from arrowquant_dist.models.source import LayerSource, layers_by_name
from arrowquant_dist.models.stand_in import write_holes
from arrowquant_dist.progress.callers import told_to
from arrowquant_dist.progress.runs import shown_layers
from arrowquant_dist.storage.temporary import temporary_folder, written_here
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.strict_json import parse_json

if TYPE_CHECKING:
    import torch

_OWN = "sentence_transformers."
_SETTINGS, _KIND = "config_sentence_transformers.json", "SentenceTransformer"
_LENGTHS = "sentence_bert_config.json"
_CHOOSING = ("Router", "Asym")


def load_sentence_transformer(
    target: Location,
    *,
    memory_budget: str | int = "2GiB",
    dtype: torch.dtype | str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    verify: bool = True,
    initialize: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    progress: ProgressCallback | bool | None = True,
    **others: object,
) -> Any:
    """Builds a SentenceTransformer with the decoded weights of a dataset, as SentenceTransformer(source) would be with
    them.

    target: of a run, local or a URL. Modules, pooling, normalization, prompts and lengths are those in its
        modules.json.
    memory_budget, dtype, storage_options, verify, initialize, leave_out, progress: as for `load_model`. If the
        checkpoint has no pooler, and no embedding needs one, initialize=["pooler"] allows that.
    others: any other argument is refused.

    The model is on the CPU.

    Raises MissingDependency without sentence-transformers; InvalidConfig if no modules.json says how tokens become a
    sentence, if a module is not one of sentence-transformers' own, or if the folder has another kind of model, such as
    a CrossEncoder; ModelMismatch, CorruptWeights.
    """
    refuse_unknown("load_sentence_transformer", others)
    _imported()
    place = location(target, "target")
    check_bool("verify", verify)
    check_dtype(dtype)
    for key, patterns in (("initialize", initialize), ("leave_out", leave_out)):
        check_patterns(key, patterns)
    limit = parse_size(memory_budget, "memory_budget")
    storage = Storage({} if storage_options is None else check_options("storage_options", storage_options))
    settings = LoaderSettings(place, storage, limit, verify, dequantize=True, dtype=None, workers=None)
    with told_to(progress, shown_layers, "load") as told, small_files(place, storage, verify=verify) as files:
        loads = Loads(OpenDataset(settings, is_local=is_local(place)), settings)
        allowed = Allowed(tuple(initialize), tuple(leave_out))
        return filled_sentence_transformer(files, loads, dtype, allowed, told)


def filled_sentence_transformer(
    files: SmallFiles,
    source: LayerSource,
    dtype: torch.dtype | str | None,
    allowed: Allowed,
    progress: ProgressCallback | None,
) -> Any:
    """The SentenceTransformer that `files` describe, with the weights of `source`."""
    return filled_sentence_model(files, source, dtype, allowed, progress).model


def filled_sentence_model(
    files: SmallFiles,
    source: LayerSource,
    dtype: torch.dtype | str | None,
    allowed: Allowed,
    progress: ProgressCallback | None,
) -> FilledModel:
    """The same, with what each of its tensors was made of."""
    sentence_transformers = _imported()
    parts = _parts(files)  # of a modules.json that is verified already
    files.check_all()
    _check_kind(files)
    layers = {path: _layers_of(path, files, source) for path in parts.values()}
    _check_all_taken(layers, source)
    with _stand_in(files, layers) as folder:
        model = _built(sentence_transformers.SentenceTransformer, folder, dtype, files.uri)
        fillings = [
            _filling(model.get_submodule(name), layers[path], source, allowed) for name, path in parts.items()
        ]
        told = ModelProgress(progress, sum(filling.nbytes for filling in fillings))
        for filling in fillings:
            filling.fill(told)
    return FilledModel(
        model,
        tuple(made for filling in fillings for made in filling.made),
        tuple(name for filling in fillings for name in filling.left_over),
    )


def _built(kind: Any, folder: Path, dtype: torch.dtype | str | None, uri: str) -> Any:
    from arrowquant_dist.models.quiet import ReportFilter, without_account

    options = {} if dtype is None else {"dtype": dtype}
    try:
        with without_account(ReportFilter()):
            return kind(
                str(folder),
                device="cpu",
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs=options,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = shortened(" ".join(str(error).split()), 300)
        message = f"sentence-transformers cannot build it ({reason}); open the source with it instead"
        raise InvalidConfig(message, uri=uri) from error


class _Filling(Protocol):
    """How the tensors of one module get their values. nbytes: of these. made: as FilledModel has it, once it is filled.
    left_over: layers that the module has no place for."""

    @property
    def nbytes(self) -> int: ...

    @property
    def made(self) -> Sequence[MadeTensor]: ...

    @property
    def left_over(self) -> Sequence[str]: ...

    def fill(self, told: ModelProgress) -> None: ...


@dataclass(frozen=True, slots=True)
class Allowed:
    """What need not fit, patterns: parameters that no layer has, layers that are not looked at, and layers that a model
    of transformers may have no place for."""

    initialize: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    leave_over: tuple[str, ...] = ()


def _filling(
    module: torch.nn.Module, layers: Mapping[str, StoredLayer], source: LayerSource, allowed: Allowed
) -> _Filling:
    """Reads nothing. Raises ModelMismatch where the module's tensors and the layers are not each other's."""
    import transformers

    unwanted = [matcher(pattern) for pattern in allowed.leave_out]
    wanted = {name: layer for name, layer in layers.items() if not any(skip(name) for skip in unwanted)}
    for child in module.modules():
        if isinstance(child, transformers.PreTrainedModel):
            return _ModelFilling(child, wanted, source, allowed)
    return _NamedFilling(module, wanted, source)


class _ModelFilling:
    """Of a model of transformers, whose tensors have no names of their own in the checkpoint: it is built again, and
    its tensors take the place of those without values."""

    def __init__(
        self, theirs: Any, layers: Mapping[str, StoredLayer], source: LayerSource, allowed: Allowed
    ) -> None:
        from arrowquant_dist.models.build import Wanted, build_model
        from arrowquant_dist.models.fill import Filling

        # attention is what the config says by now
        wanted = Wanted(theirs.dtype, None, allowed.initialize, allowed.leave_over)
        built = build_model(type(theirs), theirs.config, layers, source, wanted)
        self._theirs, self._built = theirs, built
        self._filling = Filling(built.slots, built.changes, source)
        self.left_over = built.left_over

    @property
    def made(self) -> Sequence[MadeTensor]:
        return made_of(self._built)

    @property
    def nbytes(self) -> int:
        return self._filling.nbytes

    def fill(self, told: ModelProgress) -> None:
        self._filling.fill(told)
        places = dict(self._theirs.named_modules())
        for path, module in self._built.model.named_modules():
            own = [*module.named_parameters(recurse=False, remove_duplicate=False)]
            for name, tensor in [*own, *module.named_buffers(recurse=False, remove_duplicate=False)]:
                setattr(places[path], name, tensor)


class _NamedFilling:
    """Of any other module, whose tensors have the layers' names."""

    def __init__(
        self, module: torch.nn.Module, layers: Mapping[str, StoredLayer], source: LayerSource
    ) -> None:
        self._state = module.state_dict(keep_vars=True)
        self._layers, self._source = layers, source
        self.left_over = ()
        missing = sorted(self._state.keys() - layers.keys())
        left = sorted(layers.keys() - self._state.keys())
        if missing or left:
            problems = [f"not in the dataset: {listed(missing)}"] if missing else []
            problems += [f"not in the module: {listed(left)}"] if left else []
            message = (
                f"{type(module).__name__} does not match the dataset; {'; '.join(problems)}; quantize the folder "
                "that it came from"
            )
            raise ModelMismatch(message, uri=source.uri)

    @property
    def made(self) -> Sequence[MadeTensor]:
        return [MadeTensor(tensor, plain_origin(self._layers[name])) for name, tensor in self._state.items()]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._state.values())

    def fill(self, told: ModelProgress) -> None:
        for name, tensor in self._state.items():
            layer = self._layers[name]
            load = self._source.decoded(Region.whole(layer), layer.dtype)
            values = load_now(load, self._source.budget)
            tensor.data = values.to(tensor.dtype)
            told(layer.name, tensor.nbytes)


def _imported() -> Any:
    try:
        import sentence_transformers
    except ImportError as error:
        message = (
            "a model of sentence-transformers needs that package, which is not installed; "
            "pip install 'arrowquant-dist[sentence-transformers]'"
        )
        raise MissingDependency(message) from error
    return sentence_transformers


def _parts(files: SmallFiles) -> dict[str, str]:
    """{name of a module: its folder, "" for the top}, as modules.json has them."""
    uri = f"{files.uri.rstrip('/')}/{MODULES}"
    if not files.is_sentence_model:
        message = (
            "there is no modules.json, which says how tokens become an embedding; quantize the folder that "
            "SentenceTransformer.save writes, or use load_model and pool its output"
        )
        raise InvalidConfig(message, uri=uri)
    parts = {}
    for module in parse_json((files.folder / MODULES).read_bytes()):
        kind = module["type"].rpartition(".")[2]
        if not module["type"].startswith(_OWN):
            message = f"{shortened(module['type'])} is not one of sentence-transformers' own modules"
            advice = "and other code is not run; combine its code and the weights yourself"
            raise InvalidConfig(f"{message}, {advice}", uri=uri)
        if kind in _CHOOSING:
            message = f"a {kind} chooses among models; load them one by one, with load_model(…, subfolder=…)"
            raise InvalidConfig(message, uri=uri)
        parts[str(module.get("name", module.get("idx")))] = module["path"].strip("/")
    return parts


@dataclass(frozen=True, slots=True)
class TransformerPart:
    """The module of a SentenceTransformer that reads texts. folder: of its config, files: its small ones. layers: by
    the names of its own checkpoint. longest: tokens of a text that it takes, None where it says no number."""

    folder: Path
    files: SmallFiles
    layers: dict[str, StoredLayer]
    longest: int | None


def transformer_part(files: SmallFiles, source: LayerSource) -> TransformerPart:
    """InvalidConfig where the first module is no model of transformers."""
    path = next(iter(_parts(files).values()), "")
    folder = files.part(path)
    place = folder / _LENGTHS
    said = parse_json(place.read_bytes()) if place.is_file() else {}
    longest = said.get("max_seq_length") if isinstance(said, dict) else None
    start = f"{path}/" if path else ""
    own = tuple(name.removeprefix(start) for name in files.paths if name.startswith(start))
    part_files = SmallFiles(files.uri, folder, own, (), None)
    longest = longest if isinstance(longest, int) and longest > 0 else None
    return TransformerPart(folder, part_files, _layers_of(path, files, source), longest)


def _check_kind(files: SmallFiles) -> None:
    """InvalidConfig for what sentence-transformers would turn into an encoder that its source is not."""
    path = files.folder / _SETTINGS
    settings = parse_json(path.read_bytes()) if path.is_file() else {}
    kind = settings.get("model_type", _KIND)
    if kind != _KIND:
        message = (
            f"it is a {shortened(str(kind))}, not a {_KIND}; load its weights with load_model and the class that its "
            "config.json names"
        )
        raise InvalidConfig(message, uri=f"{files.uri.rstrip('/')}/{_SETTINGS}")


def _layers_of(path: str, files: SmallFiles, source: LayerSource) -> dict[str, StoredLayer]:
    prefix = files.prefix(path)
    found = layers_by_name(source).items()
    return {name.removeprefix(prefix): layer for name, layer in found if files.is_of_part(name, path)}


def _check_all_taken(layers: Mapping[str, Mapping[str, StoredLayer]], source: LayerSource) -> None:
    taken = {layer.name for found in layers.values() for layer in found.values()}
    left = [name for name in source.layers if name not in taken]
    if left:
        message = (
            f"layers of no module in modules.json: {listed(left)}; quantize the folder that it came from"
        )
        raise ModelMismatch(message, uri=source.uri)


@contextmanager
def _stand_in(files: SmallFiles, layers: Mapping[str, Mapping[str, StoredLayer]]) -> Iterator[Path]:
    """The small files, and holes for weights."""
    with temporary_folder() as folder:
        for path in files.paths:
            with written_here(folder / path):
                (folder / path).symlink_to((files.folder / path).absolute())
        for path, found in layers.items():
            if found:
                write_holes(folder / path / "model.safetensors", found)
        yield folder
