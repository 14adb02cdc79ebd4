"""The format `gguf`: one model in one file, or in several that llama.cpp loads by naming the first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from arrowquant_dist.arena import Allocate, fresh
from arrowquant_dist.config.checks import shown
from arrowquant_dist.errors import InvalidCheckpoint, InvalidConfig, listed
from arrowquant_dist.export.files import OutputFile, shares_of
from arrowquant_dist.export.format import ExportDraft, Model, OutputFiles
from arrowquant_dist.export.gguf.architecture import Architecture, TensorPlace
from arrowquant_dist.export.gguf.bert import BERT_TYPES, bert_architecture
from arrowquant_dist.export.gguf.choice import Choice, Refusal, blocks_anew, blocks_as_stored
from arrowquant_dist.export.gguf.header import (
    ALIGNMENT,
    gguf_package,
    header,
    model_fields,
    padding,
    split_fields,
)
from arrowquant_dist.export.gguf.llama import LLAMA_TYPES, llama_architecture
from arrowquant_dist.export.gguf.packers import CodeBlocks, FloatValues
from arrowquant_dist.export.gguf.pooling import notes_on_texts, pooling_type
from arrowquant_dist.export.gguf.settings import OTHER_WAY
from arrowquant_dist.export.gguf.stored import StoredCodes, stored_codes
from arrowquant_dist.export.gguf.tokenizers import read_vocabulary
from arrowquant_dist.export.gguf.vocabulary import Vocabulary, json_settings
from arrowquant_dist.export.options import ExportOptions
from arrowquant_dist.export.tensors import LayerExport, OutputTensor
from arrowquant_dist.export_names import MARK_KEY
from arrowquant_dist.tensor import QuantizedTensor

_FACTORS = "rope_freqs.weight"
_NO_POOLING = (
    "there is no modules.json to say how the embedding of a text is made: give llama.cpp --pooling, mean or cls as the "
    "model's card says"
)


@dataclass(frozen=True, slots=True)
class WithFactors:
    """Packs a vector, followed by the divisors of the rotary frequencies, which are not a layer of the dataset."""

    vector: FloatValues
    factors: tuple[float, ...]
    row_multiple: ClassVar[int] = 1

    def tensors(self, name: str, shape: tuple[int, ...]) -> tuple[OutputTensor, ...]:
        count = len(self.factors)
        return (
            *self.vector.tensors(name, shape),
            OutputTensor(_FACTORS, "F32", (count,), 4 * count, "nothing"),
        )

    def pack(self, tensor: int, rows: QuantizedTensor, take: Allocate = fresh) -> np.ndarray:
        if tensor == 0:
            return self.vector.pack(0, rows, take)
        return np.array(self.factors, "<f4").view(np.uint8)


@dataclass(frozen=True, slots=True)
class Gguf:
    """The format. requantize: whether to quantize layers anew whose codes no block can hold, or decode them if no block
    fits."""

    name: ClassVar[str] = "gguf"
    requantize: bool = False

    @classmethod
    def of(cls, options: ExportOptions) -> Gguf:
        """Makes the format. Raises InvalidConfig for options that it does not have."""
        if options.activations is not None:
            raise InvalidConfig("activations: llama.cpp chooses how it computes; leave it out")
        if options.source is not None and not options.requantize:
            raise InvalidConfig("source: is where --requantize takes values from; give both, or neither")
        return cls(requantize=options.requantize)

    def draft(self, model: Model) -> ExportDraft:
        architecture, places = _architecture(model)
        names = model.names
        with stored_codes(model.dataset, [names[name] for name in places]) as read:
            gguf_package()
            vocabulary = _vocabulary(model, architecture)
            pooling = pooling_type(model.read)
            layers, notes = self._layers(model, architecture, places, read())
        every = (*architecture.notes, *vocabulary.notes, *notes_on_texts(model.read), *notes)
        if pooling is None and architecture.name == "bert":
            every = (*every, _NO_POOLING)
        tensors = [tensor for layer in layers for tensor in layer.tensors]
        metadata = model_fields(architecture, vocabulary, pooling, tensors)
        return ExportDraft(layers, notes=every, metadata=metadata)

    def files(self, _model: Model, draft: ExportDraft, mark: str, max_file_nbytes: int) -> OutputFiles:
        tensors = sum(len(layer.tensors) for layer in draft.layers)
        name = "general.architecture"
        sizes = [sum(_padded(tensor) for tensor in layer.tensors) for layer in draft.layers]
        shares = shares_of(sizes, max_file_nbytes)
        files = []
        for number, share in enumerate(shares):
            fields = dict(draft.metadata) if number == 0 else {name: draft.metadata[name]}
            if len(shares) > 1:
                fields |= split_fields(number, len(shares), tensors)
            layers = tuple(draft.layers[index] for index in share)
            path = f"model-{number + 1:05d}-of-{len(shares):05d}.gguf" if len(shares) > 1 else "model.gguf"
            marked = {MARK_KEY: mark} | fields  # before the tokenizer, which takes megabytes
            files.append(OutputFile(number, path, layers, _literals(layers, marked)))
        return OutputFiles(tuple(files))

    def _layers(
        self,
        model: Model,
        architecture: Architecture,
        places: Mapping[str, TensorPlace],
        codes: Mapping[str, StoredCodes],
    ) -> tuple[tuple[LayerExport, ...], tuple[str, ...]]:
        """Returns what becomes of each layer, and notes. Raises InvalidConfig listing all that cannot be written."""
        names = model.names
        exports, refused = [], defaultdict(list)
        anew: list[tuple[str, Choice]] = []
        for name, place in places.items():
            layer = names[name]
            choice = blocks_as_stored(layer, codes[layer.name], place)
            if isinstance(choice, Refusal) and self.requantize and codes[layer.name].are_codes:
                choice = blocks_anew(layer, codes[layer.name], place, has_source=model.source is not None)
                anew.append((name, choice))
            if isinstance(choice, Refusal):
                refused[choice].append(name)
                continue
            exports.append(_export(names[name].name, place, choice, architecture))
        if refused:
            raise _refusal(refused, model)
        return tuple(exports), tuple(_notes(architecture, names, anew))


def _export(stored: str, place: TensorPlace, choice: Choice, architecture: Architecture) -> LayerExport:
    packer: CodeBlocks | FloatValues | WithFactors = choice.packer
    if place.name == "output_norm.weight" and architecture.rope_factors and isinstance(packer, FloatValues):
        packer = WithFactors(packer, architecture.rope_factors)
    return LayerExport(place.name, stored, place.shape, 0, place.shape[0], packer, choice.spec)


def _notes(
    architecture: Architecture, names: Iterable[str], anew: Iterable[tuple[str, Choice]]
) -> Iterator[str]:
    left_out = [name for name in names if architecture.leaves_out(name)]
    if left_out:
        yield f"{listed(left_out)}: left out, since llama.cpp has no use for them in {architecture.name}"
    fates: defaultdict[str, list[str]] = defaultdict(list)
    for name, choice in anew:
        fates[_fate(choice)].append(name)
    for fate, changed in fates.items():
        yield f"{listed(changed)}: {fate}"


def _fate(choice: Choice) -> str:
    """Returns what becomes of a layer that is not written as it is stored, for people."""
    dtype = choice.packer.dtype
    if choice.spec is None:
        return (
            f"decoded to {dtype}" if isinstance(choice.packer, FloatValues) else f"the same codes in {dtype}"
        )
    return f"requantized as {dtype}" if choice.spec.is_quantized else f"the source's values as {dtype}"


def _refusal(refused: Mapping[Refusal, list[str]], model: Model) -> InvalidConfig:
    what = "; ".join(
        f"{refusal.reason} ({listed(names)}): {_advice(refusal, model)}" for refusal, names in refused.items()
    )
    return InvalidConfig(f"GGUF has no blocks for {what}", uri=model.dataset.uri)


def _advice(refusal: Refusal, model: Model) -> str:
    if refusal.advice is None:
        return "store these weights as floats in the source and quantize it again"
    return f"{refusal.advice.said(model)}, or let --requantize do it"


def _architecture(model: Model) -> tuple[Architecture, dict[str, TensorPlace]]:
    """Returns the architecture, and a place for each layer by the model's names. Raises InvalidCheckpoint if they do
    not fit."""
    architecture = _by_config(model)
    return architecture, architecture.placed({name: layer.shape for name, layer in model.names.items()})


def _by_config(model: Model) -> Architecture:
    config = json_settings(model.read, "config.json")
    if config is None:
        raise InvalidCheckpoint(
            "the dataset has no config.json, from which GGUF's metadata is made; put it into the source's folder and "
            "quantize again"
        )
    layers = {name: layer.name for name, layer in model.names.items()}
    model_type = config.word("model_type")
    if model_type in LLAMA_TYPES:
        return llama_architecture(config, layers)
    if model_type in BERT_TYPES:
        return bert_architecture(config, layers)
    known = ", ".join((*LLAMA_TYPES, *BERT_TYPES))
    raise InvalidCheckpoint(
        f"model_type of config.json is {shown(model_type)}, but GGUF is only supported for {known}; {OTHER_WAY}"
    )


def _vocabulary(model: Model, architecture: Architecture) -> Vocabulary:
    embedding = architecture.places[architecture.embedding]
    vocabulary = read_vocabulary(model.read, embedding.shape[0])
    if vocabulary.model not in architecture.vocabularies:
        raise InvalidCheckpoint(
            f"tokenizer.json is of a kind that GGUF's {architecture.name} does not have; use that of these weights"
        )
    return vocabulary


def _literals(layers: tuple[LayerExport, ...], fields: dict[str, Any]) -> tuple[bytes, ...]:
    """Returns the header, the padding between tensors, and the padding after the last one."""
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    return (header(fields, tensors), *(padding(tensor.nbytes) for tensor in tensors))


def _padded(tensor: OutputTensor) -> int:
    return tensor.nbytes + -tensor.nbytes % ALIGNMENT
