"""What a model computes from texts, told by its config: an embedding, the next token, or something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from arrowquant_dist.errors import InvalidConfig, listed, shortened
from arrowquant_dist.models.build import class_of, config_of, imported_transformers
from arrowquant_dist.models.files import SmallFiles

KindName = Literal["sentence-transformers", "encoder", "causal"]
_NEITHER = (
    "is neither a text encoder nor a causal language model, and other kinds are not evaluated; pass the folder of "
    "one that is"
)
_GENERATES = "ForConditionalGeneration"


@dataclass(frozen=True, slots=True)
class ModelKind:
    """What kind a model is.

    name: `causal` predicts the next token; `encoder` gives each token a vector; `sentence-transformers` pools those
    itself. architecture: name of the class. config, model_class: transformers' own; None for sentence-transformers.
    """

    name: KindName
    architecture: str
    config: Any = None
    model_class: Any = None


def kind_of_model(files: SmallFiles) -> ModelKind:
    """Returns the kind that a model's small files say. Raises InvalidConfig for kinds that are not evaluated."""
    if files.is_sentence_model:
        return ModelKind("sentence-transformers", "SentenceTransformer")
    if files.is_pipeline:
        raise InvalidConfig(f"a pipeline of diffusers {_NEITHER}", uri=files.uri)
    transformers = imported_transformers()
    files.part("")  # raises with advice if there is no config.json
    config = config_of(files.folder, transformers.AutoModel, files.uri)
    architectures = getattr(config, "architectures", None) or []
    if len(architectures) != 1 or not isinstance(architectures[0], str):
        said = f"names {listed(architectures)}" if architectures else "names no architecture"
        message = (
            f"its config.json {said}; put the name of its class of transformers there, such as BertModel"
        )
        raise InvalidConfig(message, uri=files.uri)
    name = architectures[0]
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        message = (
            f"transformers has no {shortened(name)}, which its config.json names; use a model that it knows"
        )
        raise InvalidConfig(message, uri=files.uri)
    if getattr(found, "main_input_name", "input_ids") != "input_ids" or name.endswith(_GENERATES):
        raise InvalidConfig(f"{name} {_NEITHER}", uri=files.uri)
    if name in _causal():
        return ModelKind("causal", name, config, class_of(found, config, files.uri))
    of_texts = getattr(config, "model_type", None) in _types_of_texts()
    decodes = getattr(config, "is_encoder_decoder", False) and not name.endswith("EncoderModel")
    if not of_texts or decodes:
        raise InvalidConfig(f"{name} {_NEITHER}", uri=files.uri)
    return ModelKind("encoder", name, config, class_of(found, config, files.uri))


def _causal() -> set[str]:
    """Returns the names of causal classes."""
    from transformers.models.auto import modeling_auto

    return _classes(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _types_of_texts() -> set[str]:
    """Returns the types of models that read only texts."""
    from transformers.models.auto import modeling_auto

    names = (
        "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    )
    return {key for name in names for key in getattr(modeling_auto, name, {})}


def _classes(mapping: Any) -> set[str]:
    found: set[str] = set()
    for value in mapping.values():
        found |= {value} if isinstance(value, str) else set(value)
    return found
