"""The small files that, with the weights, make a model: config, tokenizer, README. Never weights, never code.

They are chosen by exclusion: tokenizers and processors name their files as they like, and one that is missing at the
target is noticed only when somebody opens the model there. Copied are files beside the weights, in the folders that
the model's configs name, and in those of its tokenizers and processors, unless they are weights, code, pickles,
archives or logs, by their names and first bytes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from arrowquant_dist.errors import InvalidCheckpoint, listed
from arrowquant_dist.folder.adapters import ADAPTER_CONFIG
from arrowquant_dist.folder.listing import SourceFolder
from arrowquant_dist.folder.names import is_weights
from arrowquant_dist.folder.threads import in_threads
from arrowquant_dist.storage.base import ByteRange, ObjectInfo

MAX_SIDECAR_NBYTES = 32 << 20
MAX_SIDECARS = 500
MAX_TOTAL_NBYTES = 256 << 20
# Names that a target itself uses: target/layout.py.
TARGETS_OWN = ("manifest.json", "index.parquet", "weights", "report", "run")
# Folders that are copied besides those that configs name.
_FOLDERS = re.compile(
    r"1_Pooling|additional_chat_templates|chat_templates|feature_extractor|image_encoder_processor"
    r"|.*(tokenizer|processor).*"
)
# Files that a model needs to be opened: they come first if there are too many, and must be readable.
_KNOWN_BEGINNINGS = (
    *(
        "tokenizer",
        "vocab",
        "merges",
        "special_tokens_map",
        "added_tokens",
        "tekken",
        "chat_template",
        "modules.json",
    ),
    *("model_index.json", "params.json", "README", "LICENSE", "NOTICE"),
)
_KNOWN_ENDS = (".model", ".spm", ".tiktoken", ".jinja", ".bpe")
_KNOWN_KINDS = (".json", ".txt", ".md", *_KNOWN_ENDS)
_CODE = (
    *(
        ".py",
        ".pyc",
        ".pyi",
        ".pyx",
        ".pyd",
        ".ipynb",
        ".so",
        ".dll",
        ".dylib",
        ".a",
        ".o",
        ".obj",
        ".lib",
        ".exe",
    ),
    *(
        ".sh",
        ".bash",
        ".zsh",
        ".fish",
        ".bat",
        ".cmd",
        ".ps1",
        ".js",
        ".mjs",
        ".cjs",
        ".ts",
        ".jsx",
        ".tsx",
        ".php",
    ),
    *(
        ".rb",
        ".pl",
        ".lua",
        ".r",
        ".jl",
        ".c",
        ".cc",
        ".cpp",
        ".cxx",
        ".cu",
        ".cuh",
        ".h",
        ".hpp",
        ".rs",
        ".go",
    ),
    *(
        ".java",
        ".jar",
        ".class",
        ".kt",
        ".swift",
        ".scala",
        ".cs",
        ".wasm",
        ".whl",
        ".egg",
        ".node",
        ".msi",
        ".apk",
    ),
    *(".vbs", ".com", ".scr", ".ptx", ".cubin", ".metallib", ".spv"),
)
_PICKLES = (".pkl", ".pickle", ".pck", ".joblib", ".dill", ".cloudpickle", ".p")
_ARCHIVES = (
    ".zip",
    ".tar",
    ".tgz",
    ".tbz2",
    ".txz",
    ".gz",
    ".bz2",
    ".xz",
    ".7z",
    ".rar",
    ".zst",
    ".lz4",
    ".iso",
)
_COMPRESSED_TEXT = (".txt.gz", ".json.gz", ".tsv.gz")  # vocabularies
_LOGS = (".log", ".out", ".err", ".tmp", ".lock", ".incomplete", ".swp", ".bak", "~")
_LEFT_BY_QUANTIZERS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quant_log.csv")
# First bytes of programs, archives, pickles and weights under other names.
_MAGIC = (
    *(b"#!", b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xfe\xed\xfa", b"\xca\xfe\xba\xbe"),
    *(b"\0asm", b"PK\x03\x04", b"PK\x05\x06", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd"),
    *(
        b"\x80\x02",
        b"\x80\x03",
        b"\x80\x04",
        b"\x80\x05",
        b"GGUF",
        b"\x89HDF",
        b"PAR1",
        b"ARROW1",
        b"\x93NUMPY",
    ),
    *(b"version https://git-lfs",),
)
_BINARY_MAGIC = (b"MZ", b"BZh")  # only with a zero byte soon after, since texts may begin like this too
_GZIP = b"\x1f\x8b"
# Pickle protocols 0 and 1, which have no magic bytes: memoized containers, and calls.
_OLD_PICKLE = re.compile(
    rb"\([dlt]p\d|[\]})]q[\0-\x1f]|\(?c[A-Za-z_][\w.]*\n[A-Za-z_]\w*\n|\(i[A-Za-z_]\w*\n"
)
_HEAD_NBYTES = 64


@dataclass(frozen=True, slots=True)
class Sidecars:
    """The files to copy. files: sorted by path. notes: what was left out that somebody might miss."""

    files: tuple[ObjectInfo, ...]
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(info.path for info in self.files)


def choose_sidecars(folder: SourceFolder, named: Iterable[str] = (), *, is_decoded: bool = False) -> Sidecars:
    """Chooses the files to copy. named: the folders that the model's configs name. is_decoded: whether codes of a
    quantized source become values; then files that say how they were quantized are left out.

    Raises InvalidCheckpoint for a file to be copied that is a link out of the folder, or not a regular file.
    """
    left = {
        ADAPTER_CONFIG,
        *(_LEFT_BY_QUANTIZERS if is_decoded else ()),
    }  # with its config, readers would look for the adapter
    listed = [info for info in _listed(folder, named) if _is_wanted(info.path, left)]
    found = [info for info in listed if folder.is_readable(info.path) or _is_known(info.path)]
    notes = _note("not copied (not regular files)", {info.path for info in listed} - {i.path for i in found})
    large = [info.path for info in found if info.nbytes > MAX_SIDECAR_NBYTES]
    notes += _note(f"not copied (over {MAX_SIDECAR_NBYTES >> 20} MiB)", large)
    chosen, beyond = _within_limits([info for info in found if info.nbytes <= MAX_SIDECAR_NBYTES])
    notes += _note("not copied (too many small files)", [info.path for info in beyond])
    for info in chosen:
        folder.check(info.path)
    are_plain = in_threads(lambda info: _looks_plain(folder, info), chosen)
    plain = [info for info, is_plain in zip(chosen, are_plain, strict=True) if is_plain]
    hidden = [info.path for info, is_plain in zip(chosen, are_plain, strict=True) if not is_plain]
    notes += _note("not copied (programs, pickles, archives or weights by their content)", hidden)
    return Sidecars(tuple(sorted(plain, key=lambda info: info.path)), tuple(notes))


def refuse_folders(folder: SourceFolder, named: Sequence[str] = ()) -> None:
    """Raises InvalidCheckpoint for a folder in the place of a file that a model needs, such as config.json, since the
    file would be taken for missing. named: as in `choose_sidecars`."""
    for place in dict.fromkeys(("", *named)):
        for path in folder.folders(place):
            if path.endswith(_KNOWN_KINDS) and _is_known(path):
                message = (
                    "it is a folder, but a file of that name is read; put the file here, or remove the folder"
                )
                raise InvalidCheckpoint(message, uri=folder.store.url(path))


def is_targets_own(path: str) -> bool:
    """Whether the path belongs to a target itself. Case is ignored, since some file systems do not tell
    `Manifest.json` from `manifest.json`."""
    return path.partition("/")[0].lower() in TARGETS_OWN


def _listed(folder: SourceFolder, named: Iterable[str]) -> list[ObjectInfo]:
    """The files at the top, in the named folders, and in those of tokenizers and processors."""
    found = {info.path: info for info in folder.files()}
    below = [path for path in folder.folders() if _FOLDERS.fullmatch(path) is not None]
    for path in named:
        if path:
            found |= {info.path: info for info in folder.files(path)}
            below += [inner for inner in folder.folders(path) if _FOLDERS.fullmatch(_name(inner)) is not None]
    for path in below:
        found |= {info.path: info for info in folder.tree(path)}
    return list(found.values())


def _is_wanted(path: str, left: Collection[str]) -> bool:
    name = _name(path).lower()
    if is_weights(name) or name in left or is_targets_own(path) or name.startswith("events.out.tfevents"):
        return False
    if name.endswith((*_CODE, *_PICKLES, *_LOGS)):
        return False
    return not name.endswith(_ARCHIVES) or name.endswith(_COMPRESSED_TEXT)


def _is_known(path: str) -> bool:
    name = _name(path)
    is_config = name.endswith(".json") and "config" in name
    return is_config or name.startswith(_KNOWN_BEGINNINGS) or name.endswith(_KNOWN_ENDS)


def _within_limits(found: Collection[ObjectInfo]) -> tuple[list[ObjectInfo], list[ObjectInfo]]:
    """The files that are copied, the known ones first, and the files beyond the limits."""
    chosen: list[ObjectInfo] = []
    beyond: list[ObjectInfo] = []
    total = 0
    for info in sorted(found, key=lambda info: (not _is_known(info.path), info.path.count("/"), info.path)):
        if len(chosen) < MAX_SIDECARS and total + info.nbytes <= MAX_TOTAL_NBYTES:
            chosen.append(info)
            total += info.nbytes
        else:
            beyond.append(info)
    return chosen, beyond


def _looks_plain(folder: SourceFolder, info: ObjectInfo) -> bool:
    """Whether the first bytes look like those of a text or a vocabulary."""
    if info.nbytes == 0:
        return True
    end = min(info.nbytes, _HEAD_NBYTES)
    head = folder.store.read_range(info.path, ByteRange(0, end)).tobytes()
    if head.startswith(_GZIP):
        return info.path.lower().endswith(_COMPRESSED_TEXT)
    is_safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= info.nbytes - 8
    is_binary = head.startswith(_BINARY_MAGIC) and b"\0" in head
    return not (head.startswith(_MAGIC) or is_binary or is_safetensors or _OLD_PICKLE.match(head))


def _note(what: str, paths: Collection[str]) -> list[str]:
    return [f"{what}: {listed(sorted(paths))}"] if paths else []


def _name(path: str) -> str:
    return path.rpartition("/")[2]
