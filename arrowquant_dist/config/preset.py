"""Configs that come with the package, by name.

Their files are those of configs/: `presets` beside this module is a link to it, so that a checkout, an editable
install, and a wheel or sdist (which hold copies) read the same text.
"""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path, PurePath

from arrowquant_dist.config.checks import nearest
from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.location import Location, location

_FOLDER = Path(__file__).parent / "presets"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def preset_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def presets() -> dict[str, str]:
    """The configs in the package, as {name: what it is for}; `load_config` and --config take these names."""
    return {name: _summary(name) for name in preset_names()}


def preset_file(name: str) -> Path:
    """The file of a preset. Raises InvalidConfig, which lists the presets that exist."""
    names = preset_names()
    if name not in names:
        near = nearest(name, names)
        hint = f"did you mean {near!r}? The presets are" if near else "the presets are"
        message = f"there is no preset {name[:40]!r}; {hint} {', '.join(names)}"
        raise InvalidConfig(f"{message}. For a file of that name, write ./{name[:40]}")
    return _FOLDER / f"{name}.yaml"


def _summary(name: str) -> str:
    """The first sentence of the comments at the top of the file."""
    lines = preset_file(name).read_text(encoding="utf-8").splitlines()
    comments = takewhile(lambda line: line.startswith("#"), lines)
    text = " ".join(line[1:].strip() for line in comments if not line.startswith("# yaml-language-server:"))
    return re.split(r"(?<=\.) (?=[A-Z])", text, maxsplit=1)[0]


def config_place(place: Location) -> str:
    """The path or URL of a config. A text of one word (letters, digits, `-`, `_`) is the name of a preset, whatever
    files the working directory has; any other text, and any path object, is returned as it is.

    Raises InvalidConfig where there is no such preset.
    """
    text = location(place, "the config file")
    return str(preset_file(text)) if isinstance(place, str) and _NAME.fullmatch(text) else text


def near_preset(uri: str) -> str | None:
    """A hint for a file that is missing and has a preset's name; None where there is no such preset."""
    name = PurePath(uri).stem
    return f"the preset of that name is {name}, without folder and suffix" if name in preset_names() else None
