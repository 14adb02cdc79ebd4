"""The format `compressed-tensors`: decides what becomes of each layer, or lists all problems in one error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from arrowquant_dist.dataset.dataset import Dataset
from arrowquant_dist.dataset.layers import StoredLayer
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import InvalidConfig, listed
from arrowquant_dist.export.advice import Advice
from arrowquant_dist.export.compressed_tensors.choose import (
    LayerChoice,
    OutputLayer,
    Unwritable,
    choose_scheme,
)
from arrowquant_dist.export.compressed_tensors.experts import is_fused
from arrowquant_dist.export.compressed_tensors.fused import fused_sets
from arrowquant_dist.export.compressed_tensors.linear import UNKNOWN, why_not_linear
from arrowquant_dist.export.compressed_tensors.packers import ScaleDtype
from arrowquant_dist.export.compressed_tensors.parts import ModelFolder, model_folders, parts_of
from arrowquant_dist.export.compressed_tensors.rewritten import RewrittenRows, RoundedScales
from arrowquant_dist.export.compressed_tensors.schemes import LinearScheme
from arrowquant_dist.export.compressed_tensors.settings import changed_config, quantization_config
from arrowquant_dist.export.compressed_tensors.stored import StoredScales, promised_scales, read_scales
from arrowquant_dist.export.compressed_tensors.turned import TurnedValues
from arrowquant_dist.export.decoded import DecodedValues
from arrowquant_dist.export.format import ExportDraft, Model, OutputFiles
from arrowquant_dist.export.safetensors import safetensors_files
from arrowquant_dist.export.tensors import AS_THE_SOURCE, LayerExport, Packer

_SCALE_DTYPES: Mapping[str, ScaleDtype] = {"bfloat16": "BF16", "float16": "F16"}
_OTHER_SETTINGS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")  # of other formats
_ONE_SCHEME = Advice(
    "give all of them the same settings, with one override that sets a quant_type",
    "one quant_type for all of them",
)
_EXPERTS = ".experts."
_NO_MODEL = "in a folder without a transformers model's config.json, so no reader would know of its codes"


@dataclass(frozen=True, slots=True)
class CompressedTensors:
    """The format. activations: whether int8 codes are multiplied with int8 activations. requantize: whether layers that
    cannot be written as they are stored are quantized anew, or written in the source's dtype, instead of refused.
    otherwise: what an error suggests that needs no other dataset."""

    activations: bool = False
    requantize: bool = False
    name: ClassVar[str] = "compressed-tensors"
    otherwise: ClassVar[str] = (
        "--requantize, which writes these layers in the nearest form that it has, from --source if that is given"
    )

    def draft(self, model: Model) -> ExportDraft:
        """See ExportFormat.draft. Scales and zero points are read if what can be written depends on them and the
        manifest does not tell."""
        folders = model_folders(model)
        if not folders:
            message = "it has no config.json with a model_type, which readers of compressed-tensors need"
            raise InvalidConfig(f"{message}; export as safetensors", uri=model.dataset.uri)
        made = [self._folder(model, folder) for folder in folders]
        of_models = {folder.path for folder in folders}
        rest = [
            LayerChoice(OutputLayer(name, layer, layer.shape, 0, layer.rows, _NO_MODEL))
            for name, layer in model.names.items()
            if model.component_of(name).path not in of_models
        ]
        others = [choose_scheme(choice.part, None, "F32", activations=False) for choice in rest]
        choices = [choice for one in made for choice in one.choices] + others
        self._refuse(choices, model)
        has_source = model.source is not None
        notes = [note for one in made for note in one.notes]
        return ExportDraft(
            tuple(
                _export(choice, one.folder.prefix, has_source=has_source)
                for one in made
                for choice in one.choices
            )
            + tuple(_export(choice, "", has_source=has_source) for choice in others),
            changed={one.folder.config_path: one.config() for one in made},
            left_out=frozenset(
                path for path in model.side_files if path.rpartition("/")[2] in _OTHER_SETTINGS
            ),
            notes=(*notes, *_told(choices, has_source=has_source), *_readers(choices)),
        )

    def files(self, model: Model, draft: ExportDraft, mark: str, max_file_nbytes: int) -> OutputFiles:
        """See ExportFormat.files."""
        return safetensors_files(model, draft, mark, max_file_nbytes)

    def _folder(self, model: Model, folder: ModelFolder) -> _Folder:
        parts, notes = parts_of(model, folder)
        _refuse_codes(parts, folder, model)
        wanted = {part.layer.name: part.layer for part in parts if part.is_quantized and part.never is None}
        whole = [layer for layer in wanted.values() if layer.quant_type.startswith("int")]
        dtypes = {layer.name: _scale_dtype(folder, layer) for layer in whole}
        scales = self.stored_scales(model.dataset, whole, dtypes)
        choices = [self._choice(part, folder, scales) for part in parts]
        return _Folder(folder, one_scheme_a_set(choices), notes)

    def stored_scales(
        self, dataset: Dataset, layers: Sequence[StoredLayer], dtypes: Mapping[str, ScaleDtype]
    ) -> Mapping[str, StoredScales]:
        """Returns what decides how quantized layers can be written, by name. dtypes: the dtypes that their scales are
        to have."""
        said = promised_scales(dataset, layers)
        known = {name: scales for name, scales in said.items() if dtypes[name] in scales.held_by}
        return {**known, **read_scales(dataset, [layer for layer in layers if layer.name not in known])}

    def _choice(
        self, part: OutputLayer, folder: ModelFolder, scales: Mapping[str, StoredScales]
    ) -> LayerChoice:
        dtype = _scale_dtype(folder, part.layer)
        return choose_scheme(part, scales.get(part.layer.name), dtype, activations=self.activations)

    def _refuse(self, choices: Sequence[LayerChoice], model: Model) -> None:
        """Raises InvalidConfig listing all layers that cannot be written as they are stored, by problem."""
        wrong = _by_problem(choices)
        if not wrong or self.requantize:
            return
        lines = [
            f"{listed(names)}: {problem.reason} ({problem.advice.said(model)})"
            for problem, names in wrong.items()
        ]
        message = "; ".join(lines)
        raise InvalidConfig(
            f"compressed-tensors cannot hold {message}; or use {self.otherwise}",
            uri=model.dataset.uri,
        )


@dataclass(frozen=True, slots=True)
class _Folder:
    """One model of the output."""

    folder: ModelFolder
    choices: Sequence[LayerChoice]
    notes: Sequence[str] = field(default_factory=list)

    def config(self) -> bytes:
        schemes = {
            _module(choice.part): choice.scheme for choice in self.choices if choice.scheme is not None
        }
        kept = [_ignored(choice.part, self.folder) for choice in self.choices if choice.scheme is None]
        names = [name for name in kept if name is not None]
        tied = [] if "lm_head" in schemes else ["lm_head"]
        settings = quantization_config(schemes, names, tied) if schemes else None
        return changed_config(
            self.folder.config, settings, self._dtype() if self.folder.dtype is None else None
        )

    def _dtype(self) -> str | None:
        """Returns the dtype of most values of the model."""
        counts: dict[str, int] = {}
        for choice in self.choices:
            layer = choice.part.layer
            if layer.dtype in ("float32", "float16", "bfloat16"):
                counts[layer.dtype] = counts.get(layer.dtype, 0) + layer.num_params
        return max(counts, key=lambda dtype: counts[dtype], default=None)


def one_scheme_a_set(choices: Sequence[LayerChoice]) -> list[LayerChoice]:
    """Returns the choices with one scheme for each set of layers that readers fuse into one. If a set has several, all
    its layers get the widest of them, and those that had another get a problem."""
    found = {choice.part.name: choice for choice in choices}
    for what, names in fused_sets(found).items():
        members = [found[name] for name in names]
        if len({member.scheme for member in members}) == 1:
            continue
        widest = max((member.scheme for member in members), key=_width)
        ways = listed(sorted({m.scheme.label if m.scheme else "not quantized" for m in members}))
        problem = Unwritable(
            f"stored in different ways ({ways}), but readers have one for {what}", _ONE_SCHEME
        )
        for member in members:
            if member.scheme != widest:
                found[member.part.name] = member.as_scheme(widest, problem)
    return list(found.values())


def _scale_dtype(folder: ModelFolder, layer: StoredLayer) -> ScaleDtype:
    """Returns the dtype in which readers keep the scales of a layer: the model's."""
    return _SCALE_DTYPES.get(folder.dtype or layer.dtype, "F32")


def _width(scheme: LinearScheme | None) -> tuple[int, float, bool]:
    return (16, 0.0, True) if scheme is None else scheme.width


def _export(choice: LayerChoice, prefix: str, *, has_source: bool) -> LayerExport:
    """Returns how a layer is exported. has_source: whether the original values are at hand to be quantized anew, which
    is better than codes of another scheme."""
    part, scheme = choice.part, choice.scheme
    place = (f"{prefix}{part.name}", part.layer.name, part.shape, part.row_start, part.row_stop)
    if scheme is None:
        spec = AS_THE_SOURCE if choice.problems and has_source else None
        dtype = part.layer.dtype
        decoded = TurnedValues(dtype, part.turned, part.shape[0]) if part.turned else DecodedValues(dtype)
        return LayerExport(*place, decoded, spec)
    packer: Packer = scheme.packer(part.row_stop - part.row_start, choice.scale_dtype)
    if _is_anew(choice, has_source=has_source):
        return LayerExport(*place, packer, scheme.spec(choice.scale_dtype))
    if choice.rounds_scales:
        packer = RoundedScales(packer, choice.scale_dtype)
    if choice.stored is not None and choice.finer is not None and _is_other(choice):
        packer = RewrittenRows(packer, scheme.bits, choice.finer)
    return LayerExport(*place, packer)


def _is_other(choice: LayerChoice) -> bool:
    """Returns whether the scheme differs from that of the stored codes in anything but activations."""
    return choice.scheme is None or choice.stored != replace(choice.scheme, activations=False)


def _is_anew(choice: LayerChoice, *, has_source: bool) -> bool:
    if has_source:
        return bool(choice.problems)
    return _is_other(choice) and choice.finer is None


def _module(part: OutputLayer) -> str:
    return part.name.removesuffix(".weight")


def _ignored(part: OutputLayer, folder: ModelFolder) -> str | None:
    """Returns what `ignore` lists for a layer that is not quantized; None if no reader takes it for a Linear."""
    if part.turned or is_fused(part.name, part.shape):
        return f"re:.*{re.escape(part.name.rpartition(_EXPERTS)[0])}\\.experts"
    is_linear = len(part.shape) == 2 and why_not_linear(part.name, part.shape, folder.model_type) in (
        None,
        UNKNOWN,
    )
    return _module(part) if is_linear else None


def _by_problem(choices: Iterable[LayerChoice]) -> dict[Unwritable, list[str]]:
    wrong: dict[Unwritable, dict[str, None]] = {}
    for choice in choices:
        for problem in choice.problems:
            wrong.setdefault(problem, {})[choice.part.label] = None
    return {problem: [*names] for problem, names in wrong.items()}


def _told(choices: Iterable[LayerChoice], *, has_source: bool) -> list[str]:
    """Returns notes on what differs from the dataset, and why."""
    told: dict[str, dict[str, None]] = {}
    for choice in choices:
        if choice.problems:
            reasons = "; ".join(problem.reason for problem in choice.problems)
            told.setdefault(f"{_fate(choice, has_source=has_source)}: {reasons}", {})[choice.part.label] = (
                None
            )
    return [f"{listed(names)} {what}" for what, names in told.items()]


def _readers(choices: Sequence[LayerChoice]) -> list[str]:
    """Returns notes that whoever opens the output should know."""
    notes = []
    if not any(choice.scheme is not None for choice in choices):
        notes.append("nothing in it is quantized, and its config.json names no quantization")
    experts = [
        c.part.label for c in choices if c.scheme and not c.scheme.symmetric and _EXPERTS in c.part.name
    ]
    if experts:
        shown = listed([*dict.fromkeys(experts)])
        notes.append(f"{shown}: experts with zero points, which transformers 5.24 does not load")
    return notes


def _fate(choice: LayerChoice, *, has_source: bool) -> str:
    if choice.scheme is None:
        return "not quantized, the source's values" if has_source else "not quantized"
    if _is_anew(choice, has_source=has_source):
        return f"requantized, {choice.scheme.label}"
    if choice.rounds_scales:
        return f"{f'as {choice.scheme.label} ' if _is_other(choice) else ''}with rounded scales"
    return f"the same values as {choice.scheme.label}"


def _refuse_codes(parts: Iterable[OutputLayer], folder: ModelFolder, model: Model) -> None:
    """Raises InvalidConfig if the dataset has unchanged codes of another format, whose settings would have to stay."""
    if "quantization_config" not in folder.config:
        return
    codes = [part.name for part in parts if not DTYPES[part.layer.dtype].is_float and len(part.shape) > 1]
    if codes:
        message = f"{listed(codes)}: codes of the source's own quantization, which could not be decoded"
        raise InvalidConfig(f"{message}; quantize a full-precision release of it", uri=model.dataset.uri)
