"""Advice on layers that a format cannot hold, in words that fit how the dataset was made."""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_dist.export.format import Model


@dataclass(frozen=True, slots=True)
class Advice:
    """Advice for quantizing the source again. text: what to put in the config. settings: the same for layers whose
    codes are the source's (`keep_codes`), which only an override with a quant_type changes."""

    text: str
    settings: str

    def said(self, model: Model) -> str:
        """Returns the advice for this dataset."""
        manifest = model.dataset.manifest
        if manifest is None or manifest.config.get("keep_codes") is not True:
            return self.text
        return f"codes of the source that are kept: quantize with an override that says {self.settings}"


KEEP = Advice(
    "add it to mixed_precision_layers, or set quant_type: fp16 in the override that quantizes it",
    "quant_type: fp16",
)
