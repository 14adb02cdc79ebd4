"""Small safetensors sources as anyone may have made them, and their expected content, as a function of a seed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.format.encoder import bf16_bits
from tests.fuzz.decoder import bits_dtype

CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    **{f"{s}int{bits}": f"{s[:1].upper() or 'I'}{bits}" for s in ("", "u") for bits in (8, 16, 32, 64)},
}
_FLOATS = ("float32", "float32", "bfloat16", "float16", "float64")
_OTHERS = (*(name for name in CODES if not name.startswith(("float", "bfloat"))), "float8_e8m0fnu")
_ODD_NAMES = (
    *("", ".", "..", "../../etc/passwd", "/", "a/b", "a\\b", "C:\\x", "~", "*", "[a]", "{a}", "a?b", "%2e"),
    *("'", '"', "a\nb", "\r\n", "\t", "\x1b[31mred", "\u202ereversed", "名前", "é", "e\u0301", "🦙" * 20),
    *("<script>alert(1)</script>", "a b", " ", "null", "None", "0", "-1", "True", "__class__", "metadata"),
    *("\ufeff", "\x7f", "weights/shard=00000", "manifest.json", "a" * 300, "a." * 500, "n" * 4000, "ª", "ſ"),
    *("re:x", "/x/", "$(id)", "`id`", "; rm", "&amp;", "a|b", "a,b", "a=b", "%s%n", "{0}", "\\", "\\n"),
)
_MODELS = (
    *("model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.mlp.gate.weight", "lm_head.weight"),
    *("model.layers.{}.mlp.experts.{}.up_proj.weight", "model.embed_tokens.weight", "encoder.{}.bias"),
    *("model.layers.{}.mlp.experts.gate_up_proj", "backbone.layers.{}.mixer.A_log", "conv{}.weight"),
    *("rotary.inv_freq", "norm.{}.weight", "bn.{}.running_var", "h.{}.attn.c_attn.weight"),
)
_COMPANIONS = (
    *("{}.weight_scale", "{}.weight_scale_inv", "{}.scales", "{}.qweight", "{}.qzeros", "{}.g_idx"),
    *("{}.weight_packed", "{}.weight_shape", "{}.biases", "{}.SCB", "{}.weight.absmax", "{}.W_q", "{}.scale"),
    *("{}.zero", "{}.input_scale", "{}.k_scale", "{}.weight_zero_point", "{}.weight_scale_2", "{}.zeros"),
    *("{}.weight", "{}.q_scale", "{}.weight_blocks", "{}.weight_scales", "{}.scale_weight", "scaled_fp8"),
    *("{}.weight.quant_state.bitsandbytes__nf4", "{}.weight_format", "{}.q_invperm", "{}.router.weight"),
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor. bits: its values as they are in the file, flat."""

    dtype: str
    shape: tuple[int, ...]
    bits: np.ndarray

    @property
    def data(self) -> bytes:
        return self.bits.tobytes()

    @property
    def is_finite(self) -> bool:
        if self.dtype == "bfloat16":
            return bool(((self.bits & 0x7F80) != 0x7F80).all())
        return bool(np.isfinite(self.bits).all()) if self.bits.dtype.kind == "f" else True


@dataclass(slots=True)
class Source:
    """A source.

    kind: what is odd about it. expected: {name: tensor} of everything in it; None if the case has to find that out.
    decoded: {name: float64 values} of layers stored as codes; the names of the codes are not in `expected`.
    """

    kind: str
    expected: dict[str, Tensor] | None
    decoded: dict[str, np.ndarray] = field(default_factory=dict)


def write_source(folder: Path, random_: random.Random) -> Source:
    """Writes a source of a random kind into `folder`."""
    weights = {
        plain: 8,
        shards: 2,
        mutated: 4,
        companions: 3,
        float8: 2,
        tied: 1,
        not_finite: 1,
        nothing: 0.2,
    }
    [kind] = random_.choices(list(weights), list(weights.values()))
    folder.mkdir(parents=True)
    if random_.random() < 0.2:
        (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["X"]}')
    return kind(folder, random_)


def plain(folder: Path, random_: random.Random) -> Source:
    tensors = some_tensors(random_)
    write_file(folder / "model.safetensors", tensors, random_)
    return Source("plain", tensors)


def shards(folder: Path, random_: random.Random) -> Source:
    """Several files with an index; some have no tensors."""
    tensors = some_tensors(random_)
    count = random_.randrange(2, 5)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    where = {name: random_.choice(names) for name in tensors}
    used = [name for name in names if name in where.values()] if random_.random() < 0.7 else names
    for name in used:
        write_file(folder / name, {n: t for n, t in tensors.items() if where[n] == name}, random_)
    index = {"metadata": {"total_size": sum(len(t.data) for t in tensors.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return Source("shards", tensors)


def mutated(folder: Path, random_: random.Random) -> Source:
    """A file with changed bytes, most of them in its header."""
    path = folder / "model.safetensors"
    write_file(path, some_tensors(random_), random_)
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    how = random_.randrange(6)
    if how == 0:
        del data[random_.randrange(len(data)) :]
    elif how == 1:
        data += random_.randbytes(random_.randrange(1, 30))
    elif how == 2:
        data[:8] = random_.choice([0, 1, header, 2**31, 2**62, 2**64 - 1]).to_bytes(8, "little")
    elif how == 3:
        text = bytes(data[8:header])
        digits = [i for i, byte in enumerate(text) if 48 <= byte < 58]
        if digits:
            data[8 + random_.choice(digits)] = random_.choice(b"0123456789-.e ")
    else:
        for _ in range(random_.choice([1, 1, 3, 10])):
            data[random_.randrange(min(header, len(data)))] = random_.randrange(256)
    path.write_bytes(data)
    return Source("mutated", None)


def companions(folder: Path, random_: random.Random) -> Source:
    """Tensors named like codes, scales and zeros of other quantizers, with any dtype and shape."""
    tensors = some_tensors(random_, most=3)
    for _ in range(random_.randrange(1, 7)):
        name = random_.choice(_COMPANIONS).format(random_.choice(["a", "b", "layers.0.q_proj", "experts.1"]))
        tensors[name] = random_tensor(random_, name)
    write_file(folder / "model.safetensors", tensors, random_)
    return Source("companions", None)


def float8(folder: Path, random_: random.Random) -> Source:
    """Codes of e4m3 with a scale per tensor, row, or block of 128."""
    tensors = some_tensors(random_, most=3)
    decoded = {}
    for i in range(random_.randrange(1, 4)):
        rows, columns = random_.choice([(2, 2), (3, 5), (130, 7), (64, 200), (129, 257)])
        codes = np.array(
            [random_.choice(range(0x7F)) | random_.choice([0, 0x80]) for _ in range(rows)], np.uint8
        )
        codes = np.resize(codes, rows * columns)
        kind = random_.choice(["tensor", "row", "block"])
        shape = {"tensor": (1,), "row": (rows, 1), "block": (-(-rows // 128), -(-columns // 128))}[kind]
        scales = np.exp(np.array([random_.uniform(-6, 3) for _ in range(math.prod(shape))])).astype("<f4")
        grid = scales.reshape(shape)
        if kind == "block":
            grid = np.repeat(np.repeat(grid, 128, 0), 128, 1)[:rows, :columns]
        name, suffix = f"layers.{i}.fc", random_.choice(["weight_scale", "weight_scale_inv", "scale_weight"])
        tensors.pop(f"{name}.weight", None)
        decoded[f"{name}.weight"] = (e4m3_values(codes).reshape(rows, columns) * grid).astype(np.float64)
        both = {
            f"{name}.weight": Tensor("float8_e4m3fn", (rows, columns), codes),
            f"{name}.{suffix}": Tensor("float32", shape, scales),
        }
        write_file(folder / f"codes-{i}.safetensors", both, random_)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("layers.")}
    write_file(folder / "model.safetensors", tensors, random_)
    weight_map = dict.fromkeys(tensors, "model.safetensors")
    for path in sorted(folder.glob("codes-*.safetensors")):
        data = path.read_bytes()
        weight_map |= {
            name: path.name
            for name in json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            if name != "__metadata__"
        }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return Source("float8", tensors, decoded)


def e4m3_values(codes: np.ndarray) -> np.ndarray:
    """The float32 values of e4m3 codes by definition: sign, 4 bits of exponent with bias 7, 3 of mantissa, no
    infinities."""
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    size = np.where(
        exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent.astype(int) - 7)
    )
    return np.asarray(np.where(codes & 0x80, -size, size), np.float32)


def tied(folder: Path, random_: random.Random) -> Source:
    """Names that share one range of bytes, which is how some writers store tied tensors."""
    tensors = some_tensors(random_)
    names = [name for name, tensor in tensors.items() if tensor.data]
    ties = {f"tie.{i}": random_.choice(names) for i in range(random_.randrange(1, 4))} if names else {}
    write_file(folder / "model.safetensors", tensors, random_, ties)
    return Source("tied", tensors | {alias: tensors[name] for alias, name in ties.items()})


def not_finite(folder: Path, random_: random.Random) -> Source:
    tensors = some_tensors(random_)
    for name in list(tensors):
        tensor = tensors[name]
        if tensor.dtype in _FLOATS and tensor.bits.size and random_.random() < 0.7:
            bits = tensor.bits.copy()
            odd = np.array([random_.choice([math.nan, math.inf, -math.inf])], np.float32)
            bits[random_.randrange(bits.size)] = _in_dtype(odd, tensor.dtype)[0]
            tensors[name] = Tensor(tensor.dtype, tensor.shape, bits)
    write_file(folder / "model.safetensors", tensors, random_)
    return Source("not finite", tensors)


def nothing(folder: Path, random_: random.Random) -> Source:
    """No tensors at all, or only tensors without values."""
    tensors = {} if random_.random() < 0.5 else {"e": Tensor("float32", (0, 3), np.empty(0, "<f4"))}
    write_file(folder / "model.safetensors", tensors, random_)
    return Source("nothing", tensors)


def some_tensors(random_: random.Random, most: int = 7) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for _ in range(random_.randrange(1, most + 1)):
        name = random_name(random_)
        tensors[name] = random_tensor(random_, name)
    if random_.random() < 0.05:  # larger than a row block
        tensors["large.weight"] = _tensor(
            random_, "float32", random_.choice([(300, 111), (3, 9000), (2, 100, 150)])
        )
    return tensors


def random_name(random_: random.Random) -> str:
    kind = random_.random()
    if kind < 0.5:
        return random_.choice(_MODELS).format(random_.randrange(3), random_.randrange(3))
    if kind < 0.85:
        return random_.choice(_ODD_NAMES) + random_.choice(["", ".weight", "/0"])
    return "".join(
        chr(random_.choice([random_.randrange(1, 0xD7FF), random_.randrange(32, 127)])) for _ in range(9)
    )


def random_tensor(random_: random.Random, name: str) -> Tensor:
    dtype = random_.choice(_FLOATS) if random_.random() < 0.8 else random_.choice(_OTHERS)
    dims = random_.choices([0, 1, 2, 3, 4, 5], [1, 2, 8, 2, 1, 1])[0]
    if "experts.gate_up" in name and random_.random() < 0.8:
        dims = 3
    sizes = random_.choices([0, 1, 2, 3, 5, 8, 17, 33, 130], [1, 3, 3, 3, 3, 3, 3, 2, 1], k=dims)
    while math.prod(sizes) > 20_000:
        sizes[sizes.index(max(sizes))] = 2
    return _tensor(random_, dtype, tuple(sizes))


def _tensor(random_: random.Random, dtype: str, shape: tuple[int, ...]) -> Tensor:
    numbers = np.random.default_rng(random_.getrandbits(32))
    size = math.prod(shape)
    if dtype not in _FLOATS:
        bits = np.frombuffer(numbers.bytes(size * bits_dtype(dtype).itemsize), bits_dtype(dtype))
        return Tensor(dtype, shape, bits & 1 if dtype == "bool" else bits)
    values = _VALUES[random_.randrange(len(_VALUES))](numbers, size)
    return Tensor(dtype, shape, _in_dtype(values.astype(np.float32), dtype))


def _in_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return np.where(
            np.isnan(values),
            np.uint16(0x7FC0),
            bf16_bits(np.nan_to_num(values, posinf=np.inf, neginf=-np.inf)),
        )
    if dtype == "float16":
        bounded = np.where(np.isfinite(values), np.clip(values, -65504, 65504), values)
        return bounded.astype("<f2")
    return values.astype(bits_dtype(dtype))


def _with_outlier(numbers: np.random.Generator, size: int) -> np.ndarray:
    values = numbers.normal(size=size)
    values[:1] *= 1e4
    return values


_VALUES: Sequence[Callable[[np.random.Generator, int], np.ndarray]] = (
    lambda numbers, size: numbers.normal(size=size),
    lambda numbers, size: numbers.normal(size=size) * 0.02,
    lambda numbers, size: numbers.normal(size=size) * 10.0 ** numbers.integers(-38, 38),
    lambda _, size: np.zeros(size),
    lambda numbers, size: np.full(size, numbers.normal()),
    lambda numbers, size: numbers.integers(-1, 2, size).astype(np.float64) * 0.3,
    lambda numbers, size: 1000 + numbers.normal(size=size),
    lambda numbers, size: np.abs(numbers.standard_cauchy(size=size)),
    lambda numbers, size: numbers.choice([0.0, -0.0, 1e-45, -1e-40, 1.2e-38, 1.0], size),
    lambda numbers, size: numbers.choice([3.3e38, -3.3e38, 1.0], size),
    _with_outlier,
)


def write_file(
    path: Path, tensors: dict[str, Tensor], random_: random.Random, ties: dict[str, str] | None = None
) -> None:
    """Writes a file in whose header the tensors have another order than their bytes."""
    entries: list[tuple[str, object]] = []
    body = b""
    order = list(tensors)
    random_.shuffle(order)
    for name in order:
        tensor = tensors[name]
        entries.append(
            (
                name,
                {
                    "dtype": CODES[tensor.dtype],
                    "shape": tensor.shape,
                    "data_offsets": [len(body), len(body) + len(tensor.data)],
                },
            )
        )
        body += tensor.data
    known = dict(entries)
    entries += [(alias, known[name]) for alias, name in (ties or {}).items()]
    random_.shuffle(entries)
    if random_.random() < 0.3:
        entries.insert(0, ("__metadata__", random_.choice([{}, {"format": "pt"}, {"a" * 100: "\n<b>"}])))
    header = json.dumps(dict(entries), ensure_ascii=random_.random() < 0.5).encode()
    header += b" " * (-len(header) % 8 if random_.random() < 0.8 else 0)
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)
