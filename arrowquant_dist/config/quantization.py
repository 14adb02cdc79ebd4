"""How a whole checkpoint is quantized, and the overrides for some of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args

from arrowquant_dist.config.arguments import check_made, known_arguments
from arrowquant_dist.config.asking import ASKING, CHOSEN, WITHOUT_HESSIANS, refuse_chosen
from arrowquant_dist.config.checks import (
    as_tuple,
    check_bool,
    check_choice,
    check_keys,
    check_mapping,
    check_number,
    check_whole,
    invalid,
    within,
)
from arrowquant_dist.config.choices import NonFinite, QuantType, ScaleDtypeName, Untouched
from arrowquant_dist.config.patterns import check_pattern
from arrowquant_dist.config.quality import quality
from arrowquant_dist.config.size import size_limit
from arrowquant_dist.config.spec import BITS, QUANT_TYPES, STORED_SCALES, UNTOUCHED, QuantSpec
from arrowquant_dist.displays import Displayed
from arrowquant_dist.location import Location, location, without_credentials
from arrowquant_dist.method_names import METHODS, MethodName

MAX_GROUP_SIZE = 1 << 20
MAX_ROW_DIMS = 8
_NOT_SAID: Any = "int8, or none with keep_codes"  # a default for people to read, known by its identity


# Fields that earlier releases did not have; `to_dict` leaves them out where unused, so that old configs stay equal.
_LATER = (
    *("unscaled_float8", "scale_dtype", "keep_codes", "size", "step", "row_exponent", "rate"),
    *("min_quality", "texts", "chosen_for"),
)
# Settings of the methods that quantize in steps, with the lowest and the highest value of each.
_STEPPED = ("size", "counted", "gptq")  # methods that may have these settings
_STEPS = {"step": (1e-6, 1e6), "row_exponent": (0.0, 1.0), "rate": (0.0, 1.0)}


@known_arguments
@dataclass(frozen=True, slots=True)
class LayerOverride:
    """Settings for the layers that match a pattern; None leaves a setting as the config has it.

    layers: the pattern.
    quant_type: int8 int4 int3 int2, also for layers that are kept by default, or fp16, which keeps the layers.
    row_dims: number of leading dimensions that make up the rows of these layers.
    Other fields: as in QuantizationConfig; a group_size without per_channel asks for groups (`per_channel: false`).
    """

    layers: str
    quant_type: QuantType | None = None
    per_channel: bool | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    method: MethodName | None = None
    integer_zero_points: bool | None = None
    row_dims: int | None = None
    scale_dtype: ScaleDtypeName | None = None
    step: float | None = None
    row_exponent: float | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        check_pattern("layers", self.layers)
        if all(getattr(self, name) is None for name in _names(LayerOverride)[1:]):
            raise invalid(
                "layers", f"{self.layers!r} has no settings; add what is different for these layers"
            )
        if self.per_channel is None and self.group_size is not None:
            object.__setattr__(self, "per_channel", False)
        _check_values(self)
        if self.quant_type == "fp16" and self.method is not None:
            raise invalid("method", f"{self.method} has no effect on fp16; leave one of them out")

    def to_dict(self) -> dict[str, Any]:
        """The keys that are given, as in YAML; the inverse of `from_dict`."""
        values = {name: getattr(self, name) for name in _names(LayerOverride)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerOverride:
        """An override from the keys and values of its YAML. Raises InvalidConfig, which names the key."""
        check_keys(values, _names(cls), {"mixed_precision_layers": "at the top of the file"})
        if "layers" not in values:
            raise invalid("layers", "is missing; name the layers that it is for")
        for name, value in values.items():
            if value is None:
                raise invalid(name, "has no value; leave the key out or give it one")
        return cls(**values)


@known_arguments
@dataclass(frozen=True, slots=True, repr=False)
class QuantizationConfig(Displayed):
    """How a checkpoint is quantized. Lists are stored as tuples; mappings in `overrides` become LayerOverrides.

    quant_type: int8 int4 int3 int2, or fp16: keep every layer that no override quantizes, with matrices in 16 bits.
        Default: int8, or with keep_codes none, which stores layers without codes byte for byte.
    per_channel: whether each row has one scale, so that group_size has no effect.
    group_size: without per_channel, the number of values that share a scale; 0: one scale per tensor.
    symmetric: whether codes have no zero points.
    mixed_precision_layers: patterns of layers that stay unquantized, in 16 bits, unless an override has a quant_type
        for them. Layers that are kept anyway (vectors, see also config.families) are stored byte for byte all the same.
    method: one of METHODS; None: rtn for int8 and mse for fewer bits, for each layer by its own type.
    integer_zero_points: whether zero points are whole numbers; only if symmetric is False.
    non_finite: `error`: NaN or inf in a layer that is to be quantized is an error; `keep`: that layer is kept as it is.
    row_dims: {pattern: number of leading dimensions that make up the rows}; by default 2 for fused experts, else 1. The
        last match wins, and layers with no more dimensions than that are left alone.
    keep_codes: whether codes, scales and zero points of a quantized source stay as they are, unless an override has a
        quant_type for the layer; `replace` leaves the quant_type of other layers as it was.
    unscaled_float8: patterns of float8 layers that have no scales, since their numbers are the weights. Others without
        a known scale are an error.
    hessians: folder or URL where `calibrate` wrote its statistics; read for layers whose method needs them.
    overrides: settings for some layers; the last match wins as a whole: what it leaves out is as in this config.
    scale_dtype: float32, or bfloat16: scales are bfloat16 numbers and codes are chosen for these, so that a reader that
        keeps scales in the model's dtype decodes the same values.
    size: limit for all of the dataset's parts together, "5.5MB", or "2.0bits" a weight: types, methods and steps of the
        layers are then chosen, except for layers that have a quant_type in an override.
    min_quality: 0.98 or "5%" (config/quality.py): layers are stored so that the dataset is the smallest with this
        quality, without hessians.
    texts: texts to measure min_quality with, as `evaluate` takes them; None: it is measured on the weights.
    step, row_exponent, rate: numbers of methods `size`, `counted` and `gptq` (see QuantSpec), in chosen configs.
    chosen_for: in a chosen config, the config that asked for it; it has no effect.

    Raises InvalidConfig, which names the field.
    """

    quant_type: QuantType | Untouched = _NOT_SAID
    per_channel: bool = True
    group_size: int = 128
    symmetric: bool = True
    mixed_precision_layers: Sequence[str] = ()
    method: MethodName | None = None
    integer_zero_points: bool = False
    non_finite: NonFinite = "error"
    row_dims: Mapping[str, int] = field(default_factory=dict, hash=False)
    hessians: Location | None = None
    overrides: Sequence[LayerOverride] = ()
    unscaled_float8: Sequence[str] = ()
    scale_dtype: ScaleDtypeName = "float32"
    keep_codes: bool = False
    size: str | int | None = None
    step: float | None = None
    row_exponent: float | None = None
    rate: float | None = None
    min_quality: str | float | None = None
    texts: Location | None = None
    chosen_for: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        check_bool("keep_codes", self.keep_codes)
        self._check_asked()
        if self.quant_type is _NOT_SAID:
            object.__setattr__(self, "quant_type", UNTOUCHED if self.keep_codes else "int8")
        for name in (
            *("quant_type", "per_channel", "group_size", "symmetric", "integer_zero_points", "scale_dtype"),
        ):
            if getattr(self, name) is None:
                raise invalid(name, "has no value; leave the key out or give it one")
        _check_values(self)
        check_choice("non_finite", self.non_finite, get_args(NonFinite))
        if self.hessians is not None:
            object.__setattr__(self, "hessians", location(self.hessians, "hessians"))
        for key in ("mixed_precision_layers", "unscaled_float8"):
            words = as_tuple(key, getattr(self, key))
            for index, word in enumerate(words):
                check_pattern(f"{key}[{index}]", word)
            object.__setattr__(self, key, words)
        object.__setattr__(self, "row_dims", _checked_row_dims(self.row_dims))
        given = enumerate(as_tuple("overrides", self.overrides))
        overrides = tuple(_as_override(index, value) for index, value in given)
        object.__setattr__(self, "overrides", overrides)
        self._check_pairs()

    def spec(self, override: LayerOverride | None = None, row_dims: int = 1) -> QuantSpec:
        """The spec of a layer that no rule keeps, with the override that wins for it and the row_dims that it has.

        Its quant_type may be `fp16`, which says to keep the layer (see `kept_spec`). Settings without effect are
        normalized: group_size is 0 with per_channel, integer_zero_points False where symmetric.
        """

        def value(name: str) -> Any:
            own = getattr(override, name, None)
            return getattr(self, name) if own is None else own

        quant_type, per_channel, symmetric = value("quant_type"), value("per_channel"), value("symmetric")
        return QuantSpec(
            quant_type=quant_type,
            per_channel=per_channel,
            group_size=0 if per_channel else value("group_size"),
            symmetric=symmetric,
            method=value("method") or ("rtn" if quant_type == "int8" else "mse"),
            integer_zero_points=value("integer_zero_points") and not symmetric,
            row_dims=row_dims,
            keep_non_finite=self.non_finite == "keep",
            scale_dtype=value("scale_dtype") if quant_type in BITS else "float32",
            **{name: float(value(name) or 0.0) if value("method") in _STEPPED else 0.0 for name in _STEPS},
        )

    def replace(self, **changes: Any) -> QuantizationConfig:
        """A copy with some fields changed. changes: new values by field; None leaves a field as it is."""
        given = {name: value for name, value in changes.items() if value is not None}
        check_keys(given, _names(QuantizationConfig), {})
        asked = [name for name in ASKING if given.get(name, getattr(self, name)) is not None]
        if asked:
            refuse_chosen(asked[0], given)
            given.setdefault("quant_type", _NOT_SAID if self.quant_type == "int8" else self.quant_type)
        return replace(self, **given)

    def without_hessians(self) -> QuantizationConfig:
        """The config as it is before there are statistics, without `hessians`."""
        return replace(self, hessians=None, quant_type=self.quant_type if self._asks is None else _NOT_SAID)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, as in YAML, without credentials; the inverse of `from_dict`."""
        values = {
            **{name: getattr(self, name) for name in _names(QuantizationConfig) if name not in _LATER},
            "mixed_precision_layers": list(self.mixed_precision_layers),
            "row_dims": dict(self.row_dims),
            "hessians": without_credentials(str(self.hessians)) if self.hessians is not None else None,
            "overrides": [override.to_dict() for override in self.overrides],
        }
        if self.unscaled_float8:
            values["unscaled_float8"] = list(self.unscaled_float8)
        if self.scale_dtype != "float32":
            values["scale_dtype"] = self.scale_dtype
        if self.keep_codes:
            values["keep_codes"] = True
        if self._asks is not None:
            values = {name: value for name, value in values.items() if name not in CHOSEN}
        later = {name: getattr(self, name) for name in ("size", "min_quality", *_STEPS)}
        if self.texts is not None:
            later["texts"] = without_credentials(str(self.texts))
        if self.chosen_for is not None:
            later["chosen_for"] = dict(self.chosen_for)
        return values | {name: value for name, value in later.items() if value is not None}

    def _summary(self) -> Mapping[str, object]:
        """The values of `to_dict` that differ from the defaults."""
        usual = QuantizationConfig().to_dict() | {"quant_type": None}
        return {name: value for name, value in self.to_dict().items() if value != usual.get(name)}

    @property
    def _asks(self) -> str | None:
        """The field (`size` or `min_quality`) that settings are to be chosen for; None where they are given."""
        return next((name for name in ASKING if getattr(self, name) is not None), None)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantizationConfig:
        """The inverse of `to_dict`; keys may be left out. Raises InvalidConfig, which names the key."""
        values = check_mapping("config", values)
        check_keys(values, _names(cls), {})
        asked = next((name for name in ASKING if values.get(name) is not None), None)
        if asked is not None:
            refuse_chosen(asked, {name: value for name, value in values.items() if value is not None})
        return cls(**values)

    def _check_pairs(self) -> None:
        if self.symmetric and self.integer_zero_points:
            raise invalid(
                "integer_zero_points", "needs symmetric: false; symmetric scales have no zero points"
            )
        self._check_side_input("method", self.method)
        self._check_steps("", None)
        for index, override in enumerate(self.overrides):
            if self._asks is not None and override.quant_type is None and override.row_dims is None:
                reason = f"is missing: {self._asks} chooses for all layers whose quant_type no override sets"
                raise invalid(f"overrides[{index}].quant_type", reason)
            self._check_steps(f"overrides[{index}].", override)
            self._check_side_input(f"overrides[{index}].method", override.method)
            if override.integer_zero_points and self.spec(override).symmetric:
                reason = "needs symmetric: false for these layers; symmetric scales have no zero points"
                raise invalid(f"overrides[{index}].integer_zero_points", reason)

    def _check_asked(self) -> None:
        """Checks `size`, `min_quality` and what belongs to them, and that no setting that they choose is given."""
        if self.size is not None:
            size_limit(self.size)
        if self.size is not None and self.min_quality is not None:
            raise invalid(
                "min_quality", "cannot be combined with size: it asks for the smallest; leave one of them out"
            )
        if self.min_quality is not None:
            if self.hessians is not None:
                raise invalid("min_quality", WITHOUT_HESSIANS)
            wanted = quality(self.min_quality)
            if wanted.excess is not None and self.texts is None:
                raise invalid(
                    "texts", "is missing: a min_quality in percent is about the perplexity of texts"
                )
        elif self.texts is not None:
            raise invalid("texts", "is used only with min_quality, which is missing")
        if self.texts is not None:
            object.__setattr__(self, "texts", location(self.texts, "texts"))
        if self.chosen_for is not None:
            check_mapping("chosen_for", self.chosen_for)
        if self._asks is None:
            return
        if self.chosen_for is not None:
            raise invalid(
                "chosen_for", f"belongs to a table that was chosen; with {self._asks} it is chosen again"
            )
        defaults = {each.name: each.default for each in fields(QuantizationConfig)}
        refuse_chosen(self._asks, {n: getattr(self, n) for n in CHOSEN if getattr(self, n) != defaults[n]})

    def _check_steps(self, prefix: str, override: LayerOverride | None) -> None:
        """Checks that methods in steps have the numbers that they need, and that other methods have none of them."""
        spec = self.spec(override)
        own = self if override is None else override
        if spec.method not in _STEPPED:
            for name in _STEPS:
                if getattr(own, name) is not None:
                    reason = f"is only for the methods size, counted and gptq, not for {spec.method}"
                    raise invalid(f"{prefix}{name}", reason)
        elif spec.step == 0.0:
            self._check_no_step(prefix, spec)
        elif not (spec.symmetric and spec.per_channel):
            reason = f"{spec.method} with a step needs one scale per row: per_channel: true, symmetric: true"
            raise invalid(f"{prefix}method", reason)
        elif spec.scale_dtype != "float32":
            raise invalid(f"{prefix}scale_dtype", "cannot be set with a step; leave it out")
        elif spec.method == "gptq" and spec.row_exponent:
            raise invalid(
                f"{prefix}row_exponent",
                "is only for the methods size and counted; rows of gptq have one step",
            )

    def _check_no_step(self, prefix: str, spec: QuantSpec) -> None:
        if spec.method != "gptq":
            reason = f"is missing: method {spec.method} needs it (or set `size:` and no method)"
            raise invalid(f"{prefix}step", reason)
        for name in ("row_exponent", "rate"):
            if getattr(spec, name):
                raise invalid(f"{prefix}{name}", "has no effect without a step")

    def _check_side_input(self, key: str, method: MethodName | None) -> None:
        needed = METHODS[method] if method is not None else None
        if needed is not None and getattr(self, needed) is None:
            raise invalid(key, f"{method} needs {needed}; say where they are, or choose mse or rtn")


def check_config(config: Any) -> None:
    """Raises InvalidConfig unless `config` is a QuantizationConfig."""
    check_made("config", config, QuantizationConfig)


def _names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls))


def _check_values(values: QuantizationConfig | LayerOverride) -> None:
    """Checks the fields that config and override share; None is a field that is not given."""
    if values.quant_type is not None and not _is_untouched(values):
        check_choice("quant_type", values.quant_type, QUANT_TYPES)
    if values.per_channel is not None:
        check_bool("per_channel", values.per_channel)
    if values.group_size is not None:
        check_whole("group_size", values.group_size, 0, MAX_GROUP_SIZE)
    if values.symmetric is not None:
        check_bool("symmetric", values.symmetric)
    if values.method is not None:
        check_choice("method", values.method, METHODS)
    if values.integer_zero_points is not None:
        check_bool("integer_zero_points", values.integer_zero_points)
    if values.scale_dtype is not None:
        check_choice("scale_dtype", values.scale_dtype, STORED_SCALES)
    for name, (least, most) in _STEPS.items():
        if getattr(values, name) is not None:
            check_number(name, getattr(values, name), least, most)
    if isinstance(values, LayerOverride) and values.row_dims is not None:
        check_whole("row_dims", values.row_dims, 1, MAX_ROW_DIMS)


def _is_untouched(values: QuantizationConfig | LayerOverride) -> bool:
    """Whether quant_type is `none`, which is allowed with keep_codes alone: otherwise there would be nothing to do."""
    return isinstance(values, QuantizationConfig) and values.keep_codes and values.quant_type == UNTOUCHED


def _as_override(index: int, value: Any) -> LayerOverride:
    if isinstance(value, LayerOverride):
        return value
    key = f"overrides[{index}]"
    values = check_mapping(key, value)
    with within(key):
        return LayerOverride.from_dict(values)


def _checked_row_dims(values: Any) -> dict[str, int]:
    checked = dict(check_mapping("row_dims", values))
    for pattern, dims in checked.items():
        check_pattern(f"row_dims[{pattern!r}]", pattern)
        check_whole(f"row_dims[{pattern!r}]", dims, 1, MAX_ROW_DIMS)
    return checked
