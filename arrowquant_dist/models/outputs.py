"""Intermediate and final outputs of a model for a batch of texts, to train one model to match another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from arrowquant_dist.errors import InvalidConfig
from arrowquant_dist.models.files import SmallFiles
from arrowquant_dist.models.kinds import ModelKind
from arrowquant_dist.models.pair import refuse_no_vocabulary, tokenizer_of
from arrowquant_dist.models.tokens import (
    TokenizedTexts,
    longest_input,
    mean_over_tokens,
    padding_of,
    positions_before_the_first,
    refuse_unknown_ids,
    tokenized,
)

Parameters = Mapping[str, torch.Tensor]
_NONE: Parameters = {}


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs for one batch. hidden: of each step, float32 [tokens, width], real tokens only, text by text. final:
    float32 embeddings [texts, dimensions], or a causal model's logits [tokens that have a next one, vocabulary]."""

    hidden: tuple[torch.Tensor, ...]
    final: torch.Tensor


class Reader:
    """Runs a text model of any kind. From its creation on, the model is set to return its hidden states."""

    def __init__(self, kind: ModelKind, model: Any) -> None:
        self.kind, self.model = kind, model
        self._inner = _inner(kind, model)
        self._inner.config.output_hidden_states = True

    @property
    def is_causal(self) -> bool:
        return self.kind.name == "causal"

    def tokenized(self, files: SmallFiles, texts: list[str], longest: int) -> TokenizedTexts:
        """Tokenizes texts, cut to `longest` tokens or what the model takes. Raises InvalidConfig if the model has no
        tokenizer of transformers, or an id is beyond the model's embeddings."""
        tokenizer = self._tokenizer(files)
        config = self._inner.config
        limit = longest_input(tokenizer, config, positions_before_the_first(self._inner)) or longest
        made = tokenized(tokenizer, texts, min(limit, longest), padding_of(tokenizer, config))
        refuse_unknown_ids(made, self._inner)
        return made

    def run(self, inputs: Mapping[str, torch.Tensor], parameters: Parameters = _NONE) -> Outputs:
        """Runs the model. inputs: as TokenizedTexts makes them. parameters: {name: tensor to use instead of the
        model's}."""
        hidden, final = self._outputs(dict(inputs), dict(parameters))
        mask = inputs["attention_mask"].bool()
        return Outputs(tuple(states[mask].float() for states in hidden), final.float())

    def _outputs(
        self, inputs: dict[str, torch.Tensor], parameters: dict[str, torch.Tensor]
    ) -> tuple[Any, torch.Tensor]:
        call = torch.func.functional_call
        if self.kind.name == "sentence-transformers":
            features = call(self.model, parameters, (inputs,))
            return features["all_layer_embeddings"], features["sentence_embedding"]
        mask = inputs["attention_mask"]
        if self.is_causal:
            inputs.pop("token_type_ids", None)
            output = call(self.model, parameters, (), inputs)
            return output.hidden_states, output.logits[:, :-1][mask[:, 1:].bool()]
        output = call(self.model, parameters, (), inputs)
        return output.hidden_states, mean_over_tokens(output.hidden_states[-1], mask)

    def _tokenizer(self, files: SmallFiles) -> Any:
        from transformers import PreTrainedTokenizerBase

        if self.kind.name != "sentence-transformers":
            return tokenizer_of(files)
        refuse_no_vocabulary(files)
        found = getattr(self.model, "tokenizer", None)
        if not isinstance(found, PreTrainedTokenizerBase):
            message = (
                "it has no tokenizer of transformers, and only models with one are trained; use another model"
            )
            raise InvalidConfig(message, uri=files.uri)
        return found


def _inner(kind: ModelKind, model: Any) -> Any:
    """Returns the model of transformers whose hidden states are used."""
    from transformers import PreTrainedModel

    if kind.name != "sentence-transformers":
        return model
    found = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if found is None:
        raise InvalidConfig("it contains no model of transformers whose hidden states could be compared")
    return found
