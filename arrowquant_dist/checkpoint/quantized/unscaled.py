"""Float8 tensors whose scales are unknown: taken as plain numbers, they may be thousands of times too large."""

from __future__ import annotations

from arrowquant_dist.checkpoint.quantized.names import module_of
from arrowquant_dist.checkpoint.quantized.tensors import Tensors

_DTYPES = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn_x2")
_MAX_NEIGHBOURS = 8


def find_unscaled(tensors: Tensors) -> dict[str, tuple[str, ...]]:
    """{name: the first few tensors of its module, among which its scale may be} for those that nothing has taken."""
    found = [
        t.name
        for t in tensors.by_name.values()
        if t.dtype in _DTYPES and t.nbytes and tensors.is_free(t.name)
    ]
    if not found:
        return {}
    modules: dict[str, list[str]] = {}
    for name in tensors.by_name:
        modules.setdefault(module_of(name), []).append(name)
    return {name: _neighbours(name, modules[module_of(name)]) for name in found}


def _neighbours(name: str, others: list[str]) -> tuple[str, ...]:
    stem = name.removesuffix("_weight")
    alike = [other for other in others if other.startswith(stem)]  # these come first, for fused experts
    near = dict.fromkeys([*alike, *others])
    return tuple(other for other in near if other != name)[:_MAX_NEIGHBOURS]
