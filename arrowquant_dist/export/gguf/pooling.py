"""How sentence-transformers pools the embeddings of a text's tokens into one, with llama.cpp's numbers."""

from __future__ import annotations

from arrowquant_dist.errors import InvalidCheckpoint, shortened
from arrowquant_dist.export.gguf.settings import OTHER_WAY, Settings
from arrowquant_dist.export.gguf.vocabulary import Read, json_settings
from arrowquant_dist.strict_json import parse_json

_MODES = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}
_WORDS = {"mean": 1, "cls": 2, "lasttoken": 3}
_KNOWN = ("Transformer", "Pooling", "Normalize")  # llama.cpp's server normalizes by itself


def pooling_type(read: Read) -> int | None:
    """Returns the `pooling_type` for a folder with modules.json; None without one. Raises InvalidCheckpoint for modules
    and pooling modes that llama.cpp does not have."""
    data = read("modules.json")
    if data is None:
        return None
    modules = _parsed("modules.json", data)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise InvalidCheckpoint("modules.json is not a list of modules; correct it and try again")
    found = None
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in _KNOWN:
            raise InvalidCheckpoint(
                f"modules.json names a module {kind!r}, which GGUF does not support; {OTHER_WAY}"
            )
        if kind == "Pooling":
            found = _of_module(read, f"{module.get('path', '')}/config.json")
    return found


def notes_on_texts(read: Read) -> tuple[str, ...]:
    """Returns notes on what sentence-transformers does to texts and llama.cpp does not."""
    settings = json_settings(read, "config_sentence_transformers.json")
    name = settings.fields.get("default_prompt_name") if settings else None
    prompts = settings.part("prompts") if settings and name is not None else None
    prompt = prompts.fields.get(str(name)) if prompts else None
    if not isinstance(prompt, str) or not prompt:
        return ()
    return (
        f"sentence-transformers puts {shortened(prompt)!r} before each text, but llama.cpp does not: add it yourself",
    )


def _of_module(read: Read, path: str) -> int:
    data = read(path)
    fields = None if data is None else _parsed(path, data)
    if not isinstance(fields, dict):
        raise InvalidCheckpoint(
            f"{path}, which modules.json names, is missing or not a JSON object; add it and try again"
        )
    config = Settings(path, fields)
    if config.has("pooling_mode"):
        named = fields["pooling_mode"]  # may be a list of several, whose results are concatenated
        modes = [str(mode) for mode in named] if isinstance(named, list) else [config.word("pooling_mode")]
        numbers = [_WORDS[mode] for mode in modes if mode in _WORDS]
    else:
        modes = [name for name, value in fields.items() if name.startswith("pooling_mode_") and value is True]
        numbers = [_MODES[mode] for mode in modes if mode in _MODES]
    if len(modes) != 1 or len(numbers) != 1:
        raise config.unknown(f"pooling by {', '.join(modes) or 'nothing'}")
    return numbers[0]


def _parsed(path: str, data: bytes) -> object:
    try:
        value: object = parse_json(data)
    except ValueError as error:
        raise InvalidCheckpoint(f"{path} is not valid JSON: {error}; correct it and try again") from error
    return value
