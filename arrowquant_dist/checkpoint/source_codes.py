"""How V2 would store the codes of a quantized source that are kept as they are; found before a plan is made."""

from __future__ import annotations

from collections.abc import Mapping

from arrowquant_dist.checkpoint.reader import SourceReader
from arrowquant_dist.checkpoint.table import Checkpoint, Layer
from arrowquant_dist.config import DEFAULT_STORAGE, NotKept, QuantSpec, Storage
from arrowquant_dist.encodings.raw import RAW
from arrowquant_dist.folder.threads import in_threads

SourceCodes = Mapping[str, QuantSpec | NotKept]  # by layer, for layers that have codes


def find_codes(checkpoint: Checkpoint, storage: Storage = DEFAULT_STORAGE) -> SourceCodes:
    """The codes of every layer of the checkpoint that has any.

    Besides headers this reads what only values tell: the order of groups (4 bytes per column of a layer), and zero
    points until one is not in the middle. Raises what reading raises.
    """
    coded = [layer for layer in checkpoint.layers if layer.encoding != RAW and layer.num_params]
    sizes = {file.uri: file.nbytes for file in checkpoint.files}
    with SourceReader(storage, checkpoint.files) as reader:

        def spec_of(layer: Layer) -> QuantSpec | NotKept | None:
            layer.encoding.check(layer, sizes)  # before allocating memory of a size that a header claims
            return layer.encoding.kept_spec(layer, reader)

        found = in_threads(spec_of, coded)
        reader.confirm()
    return {layer.name: spec for layer, spec in zip(coded, found, strict=True) if spec is not None}
