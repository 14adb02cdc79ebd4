"""The small files of a dataset (config, tokenizer, generation settings) as a local folder, for libraries that can open
nothing else, and the parts of a model that these files name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from arrowquant_dist.config import Storage
from arrowquant_dist.errors import IncompleteDataset, InvalidConfig, NotFound, listed
from arrowquant_dist.folder.components import MODULES, PIPELINE, Component, named_components
from arrowquant_dist.folder.listing import open_folder
from arrowquant_dist.folder.sidecars import choose_sidecars, refuse_folders
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.temporary import temporary_folder, written_here
from arrowquant_dist.storage.uris import is_local
from arrowquant_dist.target.manifest import MANIFEST_PATH, Manifest, is_read

CONFIG = "config.json"
GENERATION = "generation_config.json"
# Advice for users who edited a file on purpose. A config that is passed takes the place of config.json.
_ALL_UNVERIFIED = "pass verify=False (nothing is verified)"
_GIVEN_CONFIG = "pass config= with its folder (weights stay verified) or verify=False (nothing is verified)"


@dataclass(frozen=True, slots=True)
class SmallFiles:
    """The small files of a dataset or a checkpoint.

    uri: their location, safe to show. folder: the local folder that has them. paths: their paths within it. components:
    the folders that the model's configs name, for sentence-transformers and diffusers; the folder itself if none is
    named. manifest: that of the run that copied them; None if there is none, or if nothing is to be verified.
    """

    uri: str
    folder: Path
    paths: tuple[str, ...]
    components: tuple[Component, ...]
    manifest: Manifest | None

    def check(self, wanted: Callable[[str], bool], if_meant: str = _ALL_UNVERIFIED) -> None:
        """Raises CorruptWeights for the first path among those `wanted` whose file is not what the run copied, and
        IncompleteDataset for a missing one, which programs might silently do without. if_meant: advice for a user who
        edited it on purpose."""
        if self.manifest is not None:
            listed_paths = [sidecar.path for sidecar in self.manifest.sidecars]
            for path in filter(wanted, dict.fromkeys((*self.paths, *listed_paths))):
                uri = f"{self.uri.rstrip('/')}/{path}"
                if not (self.folder / path).is_file():
                    message = f"listed in its manifest, but not there; fetch it again or, if it was meant, {if_meant}"
                    raise IncompleteDataset(message, uri=uri)
                self.manifest.check_sidecar(path, (self.folder / path).read_bytes(), uri, if_meant)

    @property
    def is_pipeline(self) -> bool:
        return any(component.named_by == PIPELINE for component in self.components)

    @property
    def is_sentence_model(self) -> bool:
        return any(component.named_by == MODULES for component in self.components)

    def part(self, subfolder: str) -> Path:
        """Returns the local folder of one model. Raises InvalidConfig, listing those with a config.json, if it has
        none."""
        place = self.folder / subfolder
        if (place / CONFIG).is_file():
            return place
        found = sorted(
            path.parent.relative_to(self.folder).as_posix() for path in self.folder.glob(f"*/{CONFIG}")
        )
        hint = f'pass subfolder="{found[0]}" for one of {listed(found)}' if found else "add the model's"
        message = f"there is no {CONFIG}, which says what model the weights belong to; {hint}"
        raise InvalidConfig(message, uri=f"{self.uri.rstrip('/')}/{subfolder}".rstrip("/"))

    def check_config(self, subfolder: str) -> None:
        """Checks, as `check` does, the file that says what a part is."""
        self.check(str(PurePosixPath(subfolder) / CONFIG).__eq__, _GIVEN_CONFIG)

    def check_generation(self, subfolder: str) -> None:
        """Checks, as `check` does, the file that says how a part generates."""
        self.check(str(PurePosixPath(subfolder) / GENERATION).__eq__)

    def check_all(self) -> None:
        """Checks, as `check` does, all files that programs read, but not those that people read and write."""
        self.check(is_read)

    def prefix(self, subfolder: str) -> str:
        """Returns the prefix of the names of a part's layers."""
        return f"{subfolder.strip('/').replace('/', '.')}." if subfolder.strip("/") else ""

    def is_of_part(self, name: str, subfolder: str) -> bool:
        """Returns whether a layer belongs to the part: its name starts with that part's prefix, and with no longer
        one."""
        prefixes = {"", *(c.prefix for c in self.components), self.prefix(subfolder)}
        longest = max((p for p in prefixes if name.startswith(p)), key=len)
        return longest == self.prefix(subfolder)


@contextmanager
def small_files(uri: str, storage: Storage, *, verify: bool) -> Iterator[SmallFiles]:
    """Yields the files that a dataset has beside its weights: in place if it is local, otherwise temporary copies.

    They are the files that `quantize` copies: no weights, no code, nothing over 32 MiB. verify: whether to check the
    file that names folders, and to make the others checkable. Raises NotFound, StorageError, CorruptWeights.
    """
    store = open_store(uri, storage)
    if is_local(uri) and not Path(store.uri).exists():
        raise NotFound("no such file or folder; check the spelling", uri=store.uri)
    if is_local(uri) and not Path(store.uri).is_dir():
        message = "it is not a folder with a config.json beside its weights; pass the target of a run"
        raise NotFound(message, uri=store.uri)
    manifest = Manifest.read(store) if verify and store.has_file(MANIFEST_PATH) else None
    if manifest is not None:
        for path in (MODULES, PIPELINE):
            if store.exists(path):
                manifest.check_sidecar(path, store.read(path), store.url(path))
    source = open_folder(store)
    components = tuple(named_components(source))
    refuse_folders(source, [component.path for component in components])
    paths = choose_sidecars(source, [component.path for component in components]).paths
    if is_local(uri):
        yield SmallFiles(store.uri, Path(store.uri), paths, components, manifest)
        return
    with temporary_folder() as folder:
        for path in paths:
            content = store.read(path)  # refuses a path that leads outside
            with written_here(folder / path):
                (folder / path).write_bytes(content)
        yield SmallFiles(store.uri, folder, paths, components, manifest)
