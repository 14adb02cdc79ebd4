"""From the config and the layers to the spec of each layer, or the reason why it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from arrowquant_dist.config.checks import invalid
from arrowquant_dist.config.families import Described, Families
from arrowquant_dist.config.patterns import Matcher, matcher, nearest_names, only_name
from arrowquant_dist.config.quantization import LayerOverride, QuantizationConfig
from arrowquant_dist.config.spec import BITS, UNTOUCHED, NotKept, QuantSpec, half_spec, kept_spec
from arrowquant_dist.dtypes import DTYPES
from arrowquant_dist.errors import counted, listed

FUSED_EXPERTS_DIMS = 3  # [experts, out, in]
_INSTEAD = (
    "an override that sets their quant_type quantizes them again (overrides: [{layers: …, quant_type: int8}]), and "
    "fp16 stores the values that they stand for"
)


@dataclass(frozen=True, slots=True)
class ResolvedLayer:
    """The spec of a layer. kept_reason: why the layer stays unquantized; None where it is quantized."""

    spec: QuantSpec
    kept_reason: str | None


def resolve_layer(config: QuantizationConfig, name: str, shape: tuple[int, ...], dtype: str) -> ResolvedLayer:
    """Resolves a single layer by `config`. dtype: a key of DTYPES."""
    return SpecResolver(config).resolve(name, shape, dtype)


class SpecResolver:
    """Resolves a checkpoint's layers one after the other, and then knows which patterns had no effect.

    Equal specs are one object, so 200,000 layers hold a handful of them.

    Order of decision:
    1. Layers that the source asks to keep byte for byte (codes that can't be decoded), and layers that can't be
       quantized (integers, bool, no values, fewer than 2 dimensions), are kept as they are.
    2. The last matching override decides, if it gives a quant_type.
    3. With keep_codes, the codes of the source stay.
    4. Vectors of more dimensions ([1, 1, C]), and parameters that are not matrices of a product (see `families`), are
       kept as they are.
    5. mixed_precision_layers, then the config with whatever else that override gives.
    So an override with a quant_type wins over all defaults, and mixed_precision_layers change nothing about layers that
    are kept anyway.

    layers: all layers of the checkpoint, which tell what each of them is.
    """

    def __init__(self, config: QuantizationConfig, layers: Sequence[Described] = ()) -> None:
        self.config = config
        self._families = Families(layers)
        self._overrides = [_OverrideUse(o, matcher(o.layers)) for o in config.overrides]
        # Overrides for a single name, of which there may be as many as layers, are looked up; each with its index.
        self._by_name: dict[str, list[tuple[int, _OverrideUse]]] = {}
        self._by_pattern: list[tuple[int, _OverrideUse]] = []
        for index, use in enumerate(self._overrides):
            name = only_name(use.override.layers)
            same = self._by_pattern if name is None else self._by_name.setdefault(name, [])
            same.append((index, use))
        self._words = [_WordUse(word, matcher(word)) for word in config.mixed_precision_layers]
        self._row_dims = [_WordUse(p, matcher(p)) for p in config.row_dims]
        self._specs: dict[QuantSpec, QuantSpec] = {}
        self._not_kept: dict[str, list[str]] = {}  # by reason
        self._coded = 0
        self._known: dict[tuple[object, ...], ResolvedLayer] = {}

    def resolve(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        kept: str | None = None,
        codes: QuantSpec | NotKept | None = None,
    ) -> ResolvedLayer:
        """Resolves one layer. dtype: a key of DTYPES. kept: why the source asks to store the layer byte for byte, if it
        does. codes: where the source's codes are to be kept, the spec of this layer's; None where it has none."""
        never = kept or _why_never(shape, dtype)
        usually = None if never is not None else _why_a_vector(shape) or self._families.why(name, shape)
        winner = self._winner(name, never)
        row_dims = self._rows_of(name, len(shape), winner)
        word = self._first_word(name)
        if winner is not None and never is None:
            winner.note_decision(name, usually, word or (None if codes is None else "keep_codes"))
        if codes is not None:
            codes = self._kept_codes(name, codes, winner, never)
        key = (never, usually, word, winner, row_dims, dtype, codes)
        known = self._known.get(key)
        if known is None:
            override = winner.override if winner is not None else None
            spec, reason = self._decide(never, usually, word, override, row_dims, dtype, codes)
            known = self._known[key] = ResolvedLayer(self._specs.setdefault(spec, spec), reason)
        return known

    def _decide(
        self,
        never: str | None,
        usually: str | None,
        word: str | None,
        override: LayerOverride | None,
        row_dims: int,
        dtype: str,
        codes: QuantSpec | None,
    ) -> tuple[QuantSpec, str | None]:
        """Spec and kept_reason, in the order of decision above. never: why the layer is kept whatever the config says.
        usually: why it is kept unless an override gives a quant_type. codes: spec of the source's codes to keep."""
        if codes is not None:
            return codes, None if codes.is_quantized else "stored so in the source (keep_codes)"
        said = override.quant_type if override is not None else None
        if never is not None:
            return kept_spec(row_dims), never
        if usually is not None and said is None:
            return kept_spec(row_dims), usually
        if word is not None and said is None:
            reason = f"mixed_precision_layers: {word}"
        else:
            spec = self.config.spec(override, row_dims)
            if spec.quant_type in BITS:
                return spec, None
            if spec.quant_type == UNTOUCHED:
                return kept_spec(row_dims), "holds no codes (keep_codes)"
            reason = f"quant_type {spec.quant_type}"
            if override is not None and said is not None:
                reason = f"override: {override.layers}"
        return half_spec(dtype, row_dims), reason

    def _kept_codes(
        self, name: str, codes: QuantSpec | NotKept, winner: _OverrideUse | None, never: str | None
    ) -> QuantSpec | None:
        """The spec of codes that no earlier rule decides about. Codes that can't be kept are remembered for
        `check_matches`."""
        self._coded += 1
        if never is not None or (winner is not None and winner.override.quant_type is not None):
            return None
        if isinstance(codes, QuantSpec):
            return codes
        self._not_kept.setdefault(codes.reason, []).append(name)
        return None

    def check_matches(self, names: Iterable[str]) -> None:
        """After the last layer: raises InvalidConfig for an override, or a pattern of row_dims, that had no effect.

        names: the names of all layers, from which the message suggests the nearest.
        """
        names = list(names)
        self._check_codes()
        for index, use in enumerate(self._overrides):
            key = f"overrides[{index}].layers"
            if not use.matches:
                raise invalid(
                    key, f"{use.override.layers!r} matches no layer{_hint(use.override.layers, names)}"
                )
            asks = (use.override.quant_type or self.config.quant_type) in BITS
            if asks and use.unquantizable is not None and not use.quantizable:
                reason = f"matches only layers that can't be quantized, such as {use.unquantizable}"
                raise invalid(key, f"{use.override.layers!r} {reason}; set quant_type: fp16, or leave it out")
            if use.override.row_dims is not None and not use.row_dims_fit:
                reason = f"{use.override.row_dims} leaves no columns; no matching layer has more dimensions"
                raise invalid(f"overrides[{index}].row_dims", reason)
        for word in self._row_dims:
            if not word.matches:
                dims = self.config.row_dims[word.pattern]
                reason = f"matches no layer with more than {counted(dims, 'dimension')}{_hint(word.pattern, names)}"
                raise invalid(f"row_dims[{word.pattern!r}]", reason)

    def _check_codes(self) -> None:
        if self._not_kept:
            what = "; ".join(f"those of {listed(names)}: {why}" for why, names in self._not_kept.items())
            reason = f"codes that V2 cannot store exactly: {what}; {_INSTEAD}"
            raise invalid("keep_codes", reason)
        if self.config.keep_codes and not self._coded:
            raise invalid("keep_codes", "no layer of the source has codes that are known here; leave it out")

    def notes(self) -> list[str]:
        """After the last layer: sentences for people about settings that have no effect but are no error."""
        notes = [
            f"mixed_precision_layers: {word.pattern!r} matches no layer"
            for word in self._words
            if not word.matches
        ]
        notes += [
            f"overrides[{index}] ({use.override.layers!r}) has no effect: a later override, "
            "mixed_precision_layers or a rule that always keeps such layers decides for all of them"
            for index, use in enumerate(self._overrides)
            if use.matches and not use.decides and not use.row_dims_fit
        ]
        notes += [
            f"overrides[{index}] ({use.override.layers!r}) quantizes {use.usually_kept_count} of the layers that are "
            f"kept by default, such as {use.usually_kept}"
            for index, use in enumerate(self._overrides)
            if use.usually_kept is not None
        ]
        config = self.config
        if config.per_channel and config.quant_type in BITS:
            default = QuantizationConfig.__dataclass_fields__["group_size"].default
            if config.group_size != default:
                notes.append(
                    f"group_size {config.group_size} has no effect with per_channel: true; "
                    "per_channel: false makes groups"
                )
            if config.quant_type != "int8":
                notes.append(
                    f"{config.quant_type} with one scale per row is coarse; per_channel: false (groups of "
                    f"{config.group_size}) is far more accurate"
                )
        return notes

    def _winner(self, name: str, never: str | None) -> _OverrideUse | None:
        found = [(index, use) for index, use in self._by_pattern if use.match(name)]
        found += self._by_name.get(name, ())
        for _, use in found:
            use.matches += 1
            if never is None:
                use.quantizable += 1
            elif use.unquantizable is None:
                use.unquantizable = f"{name} ({never})"
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def _first_word(self, name: str) -> str | None:
        first = None
        for word in self._words:
            if word.match(name):
                word.matches += 1
                first = first or word.pattern
        return first

    def _rows_of(self, name: str, dims: int, winner: _OverrideUse | None) -> int:
        if dims <= 1:
            return 1
        row_dims = 2 if dims == FUSED_EXPERTS_DIMS and "experts" in name else 1
        for word in self._row_dims:
            if word.match(name) and self.config.row_dims[word.pattern] < dims:
                word.matches += 1
                row_dims = self.config.row_dims[word.pattern]
        own = winner.override.row_dims if winner is not None else None
        if winner is not None and own is not None and own < dims:
            winner.row_dims_fit += 1
            row_dims = own
        return row_dims


class _WordUse:
    def __init__(self, pattern: str, match: Matcher) -> None:
        self.pattern, self.match = pattern, match
        self.matches = 0


class _OverrideUse:
    """How an override is used. unquantizable: the first matching layer that can't be quantized, with the reason.
    usually_kept: the first layer that it quantizes although it would be kept by default, with the reason for that.
    usually_kept_count: number of such layers."""

    def __init__(self, override: LayerOverride, match: Matcher) -> None:
        self.override, self.match = override, match
        self.matches = self.quantizable = self.decides = self.row_dims_fit = self.usually_kept_count = 0
        self.unquantizable: str | None = None
        self.usually_kept: str | None = None

    def note_decision(self, name: str, usually: str | None, word: str | None) -> None:
        """Notes that this override wins for a layer that could be quantized. usually, word: why it may yet be kept."""
        if self.override.quant_type is not None or (usually is None and word is None):
            self.decides += 1
        if usually is not None and self.override.quant_type in BITS:
            self.usually_kept_count += 1
            self.usually_kept = self.usually_kept or f"{name} ({usually})"


def _why_never(shape: tuple[int, ...], dtype: str) -> str | None:
    if not DTYPES[dtype].is_float:
        return (
            "bool" if dtype == "bool" else f"dtype {dtype}" if "float" in dtype else f"integer dtype {dtype}"
        )
    if 0 in shape:
        return "empty"
    return f"{len(shape)}-D" if len(shape) < 2 else None


def _why_a_vector(shape: tuple[int, ...]) -> str | None:
    """The reason to keep a layer of two or more dimensions of which at most one is above 1; None for others."""
    is_vector = 1 in shape and len(shape) - shape.count(1) < 2
    return f"vector ({len(shape)}-D)" if is_vector else None


def _hint(pattern: str, names: list[str]) -> str:
    near = nearest_names(pattern, names)
    return f"; did you mean {listed(near)}?" if near else f"; the first layers are {listed(names[:3])}"
