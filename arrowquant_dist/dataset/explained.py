"""Turns errors about a part into errors about the layer that was read from it."""

from __future__ import annotations

from arrowquant_dist.dataset.layers import StoredBlock
from arrowquant_dist.errors import CorruptWeights, IncompleteDataset, NotFound, StorageError


class Explained:
    """A context that adds layer and object to errors. url: that of the block's object.

    It is a class, because a function with contextmanager takes five times as long, which matters for small layers.
    """

    def __init__(self, block: StoredBlock, url: str) -> None:
        self._layer, self._url = block.header.layer_name, url

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> None:
        if isinstance(error, CorruptWeights):
            layer, url = error.layer or self._layer, error.uri or self._url
            raise CorruptWeights(error.message, layer=layer, uri=url, byte_range=error.byte_range) from error
        if isinstance(error, StorageError):
            error.layer = error.layer or self._layer
        elif isinstance(error, NotFound):
            message = "a part that the dataset needs is gone; fetch it again, or quantize with --repair"
            raise IncompleteDataset(message, layer=self._layer, uri=self._url) from error
