"""Checks by names, shapes and small files that a dataset was made from the model that it is compared with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from arrowquant_dist.errors import InvalidConfig, ModelMismatch, listed, shortened
from arrowquant_dist.models.source import layers_by_name
from arrowquant_dist.strict_json import parse_json

if TYPE_CHECKING:
    from arrowquant_dist.models.pair import Opened

# Files that decide how a text becomes tokens and what the model computes from them.
_DECIDES = re.compile(
    r"(.*_)?config(_.*)?\.json|modules\.json|(tokenizer|tekken|vocab|merges|special_tokens|added_tokens).*"
    r"|.*\.(model|spm|bpe|tiktoken)",
    re.IGNORECASE,
)
_DECIDES_NOTHING = {"generation_config.json", "preprocessor_config.json", "adapter_config.json"}
# Keys in these files that do not matter: authorship, chat formatting, and the dtype of stored or computed weights.
_NO_MATTER = {
    *("_name_or_path", "name_or_path", "tokenizer_file", "transformers_version", "__version__"),
    *("torch_dtype", "dtype", "architectures", "chat_template"),
}


def refuse_disagreement(model: Opened, dataset: Opened) -> None:
    """Raises ModelMismatch where layers have other names or shapes, and InvalidConfig where a file that determines what
    the model computes from a text (config, tokenizer, pooling) differs. Files that only one side has are ignored."""
    _refuse_other_layers(model, dataset)
    uri = dataset.files.uri
    for path in sorted({*model.files.paths} & {*dataset.files.paths}):
        name = path.rpartition("/")[2]
        if name in _DECIDES_NOTHING or not _DECIDES.fullmatch(name):
            continue
        ours, theirs = ((side.files.folder / path).read_bytes() for side in (model, dataset))
        if ours != theirs and (where := _difference(path, ours, theirs)) is not None:
            message = f"its {path} is not the model's{where}; use the model that it was made from"
            raise InvalidConfig(message, uri=uri)


def _refuse_other_layers(model: Opened, dataset: Opened) -> None:
    ours, theirs = _shapes(model), _shapes(dataset)
    problems = []
    if missing := sorted(ours.keys() - theirs.keys()):
        problems.append(f"not in the dataset: {listed(missing)}")
    if more := sorted(theirs.keys() - ours.keys()):
        problems.append(f"not in the model: {listed(more)}")
    other = [
        f"{shortened(name)} has shape {[*theirs[name]]} but {[*ours[name]]} in the model"
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name] != theirs[name]
    ]
    if other:
        problems.append(listed(other))
    if problems:
        message = f"it was not made from {model.source.uri}; {'; '.join(problems)}; use the model that it was made from"
        raise ModelMismatch(message, uri=dataset.source.uri)


def _shapes(side: Opened) -> dict[str, tuple[int, ...]]:
    return {name: layer.shape for name, layer in layers_by_name(side.source).items()}


def _difference(path: str, ours: bytes, theirs: bytes) -> str | None:
    """Returns where two contents differ, "" if that cannot be told, or None if the difference does not matter."""
    if not path.endswith(".json"):
        return ""
    try:
        first, second = parse_json(ours), parse_json(theirs)
    except ValueError:
        return ""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return None if first == second else ""
    keys = [key for key in {**first, **second} if key not in _NO_MATTER]
    other = [key for key in keys if first.get(key, ...) != second.get(key, ...)]
    return f" (in {listed(sorted(other))})" if other else None
