"""The places where a torch module keeps its tensors, and whether a dataset's layers fit there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dataset.region import Region
from arrowquant_dist.errors import InvalidConfig, ModelMismatch, listed, shortened
from arrowquant_dist.loader.memory import has_memory, identity_of, repeats_itself, storage_of

if TYPE_CHECKING:
    import torch

DECODED_DTYPES = ("float32", "float16", "bfloat16", "float64")
_HINT = "load into the model that it came from, or pass strict=False if names may differ"
_CONVERTED = (
    "for many models, transformers uses other names and shapes than their checkpoints (experts merged, projections and "
    "prefixes renamed); load_model(target, {}) converts them as from_pretrained does"
)


class LoadedKeys(NamedTuple):
    """Names that `load_into` left alone.

    missing_keys: names of the module that the dataset has no weights for. unexpected_keys: names of the dataset that
    the module has no place for.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


class Slots:
    """A module's tensors by the keys of its state dict. Several keys may share one tensor, or its memory.

    Buffers outside the state dict (those that are not persistent) are computed by the module from its config, more
    exactly than an older checkpoint may hold them. The name of such a buffer in a dataset is therefore expected, is
    never reported as missing, and is used only where the module has no values yet, on the meta device.

    tensors: {key: tensor}. Raises InvalidConfig if `module` is not a module.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        import torch

        _check_module(module)
        self._module = module
        state = module.state_dict(keep_vars=True).items()
        self.tensors = {key: value for key, value in state if isinstance(value, torch.Tensor)}
        buffers = module.named_buffers(remove_duplicate=False)
        computed = {name: buffer for name, buffer in buffers if name not in self.tensors}
        self._computed = {name for name, buffer in computed.items() if not buffer.is_meta}
        self._optional = {name for name in computed if name not in self._computed}
        self.tensors.update((name, computed[name]) for name in self._optional)
        self._keys: dict[object, list[str]] = {}
        for key, value in self.tensors.items():
            self._keys.setdefault(identity_of(value), []).append(key)

    def compare(self, layers: Mapping[str, StoredLayer], *, strict: bool) -> LoadedKeys:
        """Returns the names on one side only. layers: the dataset's, by every name. Raises ModelMismatch with all
        problems."""
        missing = [
            key
            for key, value in self.tensors.items()
            if key not in self._optional and not any(k in layers for k in self._keys[identity_of(value)])
        ]
        unexpected = [name for name in layers if name not in self.tensors and name not in self._computed]
        found = [(name, layer) for name, layer in layers.items() if name in self.tensors]
        problems = [*self._problems(found)]
        if strict and missing:
            problems.append(f"missing from the dataset: {listed(missing)}")
        if strict and unexpected:
            problems.append(f"not in the module: {listed(unexpected)}")
        if problems:
            raise self.mismatch(f"does not match the dataset; {'; '.join(problems)}; {self._hint}")
        return LoadedKeys(missing, unexpected)

    @property
    def _hint(self) -> str:
        """The advice at the end of an error. Models of transformers are recognized by the name of their base class, so
        that the library need not be imported."""
        kind = type(self._module)
        if any(base.__name__ == "PreTrainedModel" for base in kind.__mro__):
            return _CONVERTED.format(kind.__name__)
        return _HINT

    def mismatch(self, message: str) -> ModelMismatch:
        return ModelMismatch(f"{type(self._module).__name__} {message}")

    def keys_for(self, names: Sequence[str]) -> list[str]:
        """Returns one key for each place in memory that any of `names` refers to."""
        found = {identity_of(self.tensors[name]): name for name in reversed(names) if name in self.tensors}
        return [name for name in names if name in found.values()]

    def dtype(self, key: str) -> str | None:
        """Returns the dtype to decode to for the key's tensor: the tensor's own; None on the meta device, or where
        values cannot be decoded to it."""
        tensor = self.tensors[key]
        name = str(tensor.dtype).removeprefix("torch.")
        return name if not tensor.is_meta and name in DECODED_DTYPES else None

    def fill(self, keys: Sequence[str], tensor: torch.Tensor) -> None:
        is_taken = False
        for key in keys:
            old = self.tensors[key]
            try:
                if old is tensor:  # decoded into directly
                    is_taken = True
                elif old.is_meta:
                    self._replace(old, tensor.detach().clone() if is_taken else tensor)
                    is_taken = True
                else:
                    copy_into(old, tensor)
            except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
                reason = shortened(" ".join(str(error).split()))
                message = f"does not accept {shortened(key)!r} ({reason}); load into a plain module"
                raise self.mismatch(message) from error

    def _problems(self, found: Sequence[tuple[str, StoredLayer]]) -> Iterator[str]:
        """Yields the reasons why the module cannot be filled, whether or not names have to agree."""
        kinds: dict[str, list[str]] = {}
        for name, layer in found:
            kind = _problem(self.tensors[name], layer)
            if kind is not None:
                kinds.setdefault(kind[0], []).append(f"{shortened(name)!r} {kind[1]}".rstrip())
        for reason, names in kinds.items():
            yield f"{reason}: {listed(names)}" if reason else listed(names)
        elsewhere = self._elsewhere([name for name, _ in found])
        if elsewhere:
            yield f"created by a state_dict hook, not tensors of the module itself: {listed(elsewhere)}"

    def _elsewhere(self, names: Sequence[str]) -> list[str]:
        """Returns keys whose tensors a state dict hook made: the module would never see values copied into them."""
        own = [*self._module.parameters(), *self._module.buffers()]
        identities, storages = {id(tensor) for tensor in own}, {storage_of(tensor) for tensor in own}
        return [
            name
            for name in names
            if id(self.tensors[name]) not in identities
            and (self.tensors[name].is_meta or storage_of(self.tensors[name]) not in storages)
        ]

    def _replace(self, old: torch.Tensor, tensor: torch.Tensor) -> None:
        """Puts `tensor` in the place of the meta tensor `old`, under every key that it has."""
        import torch

        new = tensor
        if isinstance(old, torch.nn.Parameter):
            new = torch.nn.Parameter(tensor, requires_grad=old.requires_grad and tensor.is_floating_point())
        for key in self._keys[identity_of(old)]:
            owner, _, leaf = key.rpartition(".")
            setattr(self._module.get_submodule(owner), leaf, new)
            self.tensors[key] = new


def dtype_for(tensor: object, region: Region) -> str | None:
    """Returns the dtype to decode a region to in order to fill `tensor`; None for the region's own dtype. Raises
    InvalidConfig where the tensor cannot be filled."""
    import torch

    layer = region.layer
    if not isinstance(tensor, torch.Tensor):
        message = f"read_into fills a torch tensor, not {_article(tensor)}"
        raise InvalidConfig(message, layer=layer.name)
    if tuple(tensor.shape) != region.shape:
        message = f"it has shape {list(region.shape)}, but the tensor has {list(tensor.shape)}; pass one of that shape"
        raise InvalidConfig(message, layer=layer.name)
    name = str(tensor.dtype).removeprefix("torch.")
    if not torch.can_cast(getattr(torch, layer.dtype), tensor.dtype):
        raise InvalidConfig(
            f"it is {layer.dtype}, but the tensor is {name}; pass one of another dtype", layer=layer.name
        )
    if repeats_itself(tensor) or (tensor.numel() and not has_memory(tensor)):
        kind = f"{type(tensor).__name__}, {tensor.device}"
        message = f"this is not a plain tensor, so it cannot be filled ({kind}); pass another"
        raise InvalidConfig(message, layer=layer.name)
    return name if layer.is_float and name in DECODED_DTYPES else None


def _check_module(module: object) -> None:
    import torch

    if isinstance(module, torch.nn.Module):
        return
    if isinstance(module, type):
        message = f"expected a module, not the class {module.__name__}; create an instance first"
    else:
        message = f"expected a torch.nn.Module, not {_article(module)}; pass the model itself"
    raise InvalidConfig(message)


def _article(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _problem(tensor: torch.Tensor, layer: StoredLayer) -> tuple[str, str] | None:
    """Returns (problem that several tensors may share, details of this one), or None where the layer fits."""
    import torch

    if torch.nn.parameter.is_lazy(tensor):
        return "not initialized yet, so run the module once first", ""
    if tuple(tensor.shape) != layer.shape:
        return "", f"has shape {list(layer.shape)} but {list(tensor.shape)} in the module"
    dtype = getattr(torch, layer.dtype)
    if not tensor.is_meta and not torch.can_cast(dtype, tensor.dtype):
        return "", f"is {layer.dtype} but {str(tensor.dtype).removeprefix('torch.')} in the module"
    if repeats_itself(tensor):
        return "several values of the module share one place in memory", ""
    if not tensor.is_meta and tensor.numel() and not has_memory(tensor):
        return "not plain tensors, so they cannot be filled", f"({type(tensor).__name__}, {tensor.layout})"
    return None


def copy_into(old: torch.Tensor, tensor: torch.Tensor) -> None:
    """Copies `tensor` to `old`. Raises RuntimeError where a whole number does not fit into the dtype of `old`."""
    import torch

    with torch.no_grad():
        old.copy_(tensor)
        is_whole = (
            not tensor.is_floating_point() and old.dtype != tensor.dtype and not old.is_floating_point()
        )
        if is_whole and not torch.equal(old.to(tensor.dtype), tensor.to(old.device)):
            raise RuntimeError(f"its values do not fit into {old.dtype}")
