"""What turns texts, pictures and sounds into a model's inputs, from the small files of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arrowquant_dist.config import Storage
from arrowquant_dist.config.checks import check_bool, check_options
from arrowquant_dist.errors import InvalidConfig, shortened
from arrowquant_dist.location import Location, location
from arrowquant_dist.models.arguments import check_subfolder, refuse_unknown
from arrowquant_dist.models.files import small_files


def load_tokenizer(
    target: Location,
    auto_class: Any = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    subfolder: str = "",
    verify: bool = True,
    **others: object,
) -> Any:
    """Loads the tokenizer of a dataset, local or at a URL. Only small files are fetched.

    target: of a run.
    auto_class: None: AutoTokenizer; or another class that reads only small files, such as AutoProcessor. Code that
        comes with a model is not run.
    storage_options: fsspec's.
    subfolder: for a model whose parts are in folders.
    verify: that the files are those that the run copied. With verify=False, files that were edited on purpose are
        accepted; no weights are read here.
    others: any other argument is refused.

    Raises InvalidConfig for other classes and arguments, and if transformers finds no tokenizer that it knows;
    CorruptWeights if a file was edited or is damaged.
    """
    import transformers

    refuse_unknown("load_tokenizer", others)
    check_subfolder(subfolder)
    place = location(target, "target")
    reader = transformers.AutoTokenizer if auto_class is None else auto_class
    storage = Storage({} if storage_options is None else check_options("storage_options", storage_options))
    check_bool("verify", verify)
    with small_files(place, storage, verify=verify) as files:
        files.check_all()
        try:
            return reader.from_pretrained(
                files.folder / subfolder, trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = shortened(" ".join(str(error).split()), 300)
            message = f"transformers finds no {reader.__name__} there ({reason}); open the source's instead"
            raise InvalidConfig(message, uri=files.uri) from error
