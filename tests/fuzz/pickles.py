"""Pickles that a stranger may have made, written operation by operation instead of by Python's pickler.

Each kind is a function of a random generator. It gives a pickle that weights_only would load at a cost in time or
memory far out of proportion to its size, or one that torch.save never writes.
"""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

Kind = Callable[[random.Random], bytes]


def name(module: str, word: str) -> bytes:
    return f"c{module}\n{word}\n".encode()


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    raw = value.to_bytes((value.bit_length() // 8) + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def put(slot: int) -> bytes:
    return b"r" + slot.to_bytes(4, "little")


def get(slot: int) -> bytes:
    return b"j" + slot.to_bytes(4, "little")


def pickled(*operations: bytes) -> bytes:
    return b"\x80\x02" + b"".join(operations) + b"."


def storage(numel: int = 4, key: str = "0", kind: str = "FloatStorage") -> bytes:
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(numel) + b"tQ"


def sizes(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(shape: bytes, strides: bytes, offset: int = 0, numel: int = 4) -> bytes:
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + storage(numel)
        + number(offset)
        + shape
        + strides
        + b"\x89"
        + name("collections", "OrderedDict")
        + b")RtR"
    )


def state(*values: bytes) -> bytes:
    """A dict with one good tensor, and `values` under other names."""
    good = text("w") + tensor(sizes(2, 2), sizes(2, 1))
    return pickled(b"}(", good, *(text(f"x{i}") + value for i, value in enumerate(values)), b"u")


def chained_encode(random_: random.Random) -> bytes:
    codec = random_.choice(
        ["hex", "base64", "utf-16", "utf-32", "unicode_escape", "punycode", "idna", "zlib", "uu"]
    )
    value = text("a" * random_.randrange(1, 100))
    for _ in range(random_.randrange(2, 60)):
        value = name("_codecs", "encode") + b"(" + value + text(codec) + b"tR"
    return state(value)


def repeated_encode(random_: random.Random) -> bytes:
    """One long text that is encoded again and again."""
    length, times = random_.randrange(10_000, 100_000), random_.randrange(2_000, 10_000)
    head = text("a" * length) + put(1) + b"0" if random_.random() < 0.2 else text("a" * length) + put(1)
    call = name("_codecs", "encode") + b"(" + get(1) + text("latin1") + b"tR"
    return pickled(b"](", head, call * times, b"e")


def doubled_tuples(random_: random.Random) -> bytes:
    steps = random_.randrange(20, 200)
    return pickled(b"K\x01", put(0), *(get(i) * 2 + b"\x86" + put(i + 1) for i in range(steps)))


def doubled_keys(random_: random.Random) -> bytes:
    steps = random_.randrange(8, 13)
    pairs = b"".join(get(i) * 2 + b"\x86" + put(i + 1) for i in range(steps))
    return pickled(b"}(", b"K\x01", put(0), pairs, (get(steps) + b"N") * random_.randrange(500, 5000), b"u")


def colliding_tuples(random_: random.Random) -> bytes:
    """A dict with many small tuples as keys, whose hashes anyone can choose so that they collide."""
    keys = b"".join(
        number(i) + number(random_.getrandbits(60)) + b"\x86N" for i in range(random_.randrange(2000, 5000))
    )
    return pickled(b"}(", keys, b"u")


def repeated_copies(random_: random.Random) -> bytes:
    """A long list that is copied into a set, a size or a dict again and again."""
    module, word = random_.choice([("__builtin__", "set"), ("torch", "Size"), ("collections", "Counter")])
    count = random_.randrange(2_000, 9_000)
    if word == "Counter":
        long = b"}(" + b"".join(number(i) + b"K\x01" for i in range(count)) + b"u"
    else:
        items = b"".join(number(i) for i in range(count))
        long = b"(" + items + b"t" if word == "Size" else b"](" + items + b"e"
    call = name(module, word) + b"(" + get(1) + b"tR"
    return pickled(b"](", long, put(1), call * random_.randrange(2_000, 5_000), b"e")


def repeated_tensors(random_: random.Random) -> bytes:
    """Many tensors of a few bytes each: function and arguments are in the memo."""
    function = name("torch._utils", "_rebuild_tensor_v2") + put(1)
    arguments = (
        b"("
        + storage()
        + b"K\x00"
        + sizes(2, 2)
        + sizes(2, 1)
        + b"\x89"
        + name("collections", "OrderedDict")
        + b")Rt"
    )
    call = b"h\x01h\x02R"
    times = random_.randrange(20_000, 200_000)
    return pickled(b"](", function, arguments, put(2), call * times, b"e")


def repeated_parameters(random_: random.Random) -> bytes:
    function = name("torch._utils", "_rebuild_parameter") + put(1)
    arguments = b"(" + tensor(sizes(2), sizes(1)) + b"\x89" + name("collections", "OrderedDict") + b")Rt"
    return pickled(
        b"](", function, arguments, put(2), b"h\x01h\x02R" * random_.randrange(20_000, 200_000), b"e"
    )


def nested_parameters(random_: random.Random) -> bytes:
    depth = random_.randrange(1_000, 20_000)
    open_ = (name("torch._utils", "_rebuild_parameter") + put(1) + b"(") + b"h\x01(" * depth
    close = (b"\x89" + name("collections", "OrderedDict") + b")R" + put(2) + b"tR") + b"\x89h\x02tR" * depth
    return pickled(b"}(", text("w"), open_, tensor(sizes(2), sizes(1)), close, b"u")


def giant_shape(random_: random.Random) -> bytes:
    dims = random_.randrange(1, 5)
    shape = [random_.choice([2**62, 2**40, 2**31, 10**12, 1]) for _ in range(dims)]
    strides = [random_.choice([0, 1, 2**62]) for _ in range(dims)]
    return state(tensor(sizes(*shape), sizes(*strides), random_.choice([0, 2**62])))


def many_dims(random_: random.Random) -> bytes:
    dims = random_.randrange(65, 9_000)
    return state(tensor(sizes(*[1] * dims), sizes(*[1] * dims)))


def negative_shape(random_: random.Random) -> bytes:
    shape = sizes(random_.choice([-1, -(2**62)]), 2)
    return state(tensor(shape, sizes(2, 1)))


def giant_storage(random_: random.Random) -> bytes:
    numel = random_.choice([2**40, 2**62, 2**63 - 1])
    return state(
        tensor(sizes(2, 2), sizes(2, 1), 0, numel)
        if random_.random() < 0.5
        else tensor(sizes(numel), sizes(1), 0, numel)
    )


def huge_argument(random_: random.Random) -> bytes:
    module, word = random_.choice(
        [
            *(
                ("__builtin__", word)
                for word in ("bytearray", "str", "int", "set", "complex", "range", "list", "pow", "bytes")
            ),
            *(("collections", word) for word in ("OrderedDict", "Counter", "deque", "ChainMap")),
            *(
                ("torch", word)
                for word in (
                    "Size",
                    "device",
                    "empty",
                    "zeros",
                    "Tensor",
                    "FloatTensor",
                    "FloatStorage",
                    "dtype",
                )
            ),
            *(("torch.storage", word) for word in ("UntypedStorage", "TypedStorage", "_load_from_bytes")),
            *(("numpy.core.multiarray", word) for word in ("_reconstruct", "scalar")),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("torch._utils", "_rebuild_sparse_tensor"),
            ("torch._utils", "_rebuild_qtensor"),
            ("torch.nn.parameter", "Parameter"),
            ("torch.serialization", "_get_layout"),
        ]
    )
    argument = random_.choice(
        [number(2**46), number(2**62), text("9" * 100_000), b"(" + number(2**40) * 3 + b"t", b"]", b"}"]
    )
    if random_.random() < 0.3:
        return state(name(module, word) + b"(" + argument + b"t\x81")
    return state(name(module, word) + b"(" + argument * random_.choice([1, 1, 2, 3]) + b"tR")


def giant_integer(random_: random.Random) -> bytes:
    length = random_.randrange(9, 255)
    return random_.choice(
        [
            state(b"\x8a" + bytes([length]) + b"\x7f" * length),
            state(b"\x8b" + (2**31 - 1).to_bytes(4, "little") + b"\x7f" * 100),
            state(b"L" + b"9" * 100_000 + b"L\n"),
            state(b"I" + b"9" * 100_000 + b"\n"),
        ]
    )


def giant_text(random_: random.Random) -> bytes:
    claimed = random_.choice([2**32 - 1, 2**31, 10**9])
    return random_.choice(
        [
            pickled(b"X" + claimed.to_bytes(4, "little") + b"abc"),
            pickled(b"\x8d" + (claimed << 20).to_bytes(8, "little") + b"abc"),
            pickled(b"T" + claimed.to_bytes(4, "little") + b"abc"),
            pickled(b"\x8e" + (claimed << 20).to_bytes(8, "little") + b"abc"),
            pickled(b"\x96" + (claimed << 20).to_bytes(8, "little") + b"abc"),
        ]
    )


def cycle(random_: random.Random) -> bytes:
    """A dict that is its own state, a list that contains itself, or a tensor whose attributes hold the tensor."""
    return random_.choice(
        [
            pickled(
                name("collections", "OrderedDict") + b")R" + put(1), b"}" + text("a") + get(1) + b"s" + b"b"
            ),
            pickled(b"]" + put(1) + get(1) + b"a"),
            pickled(b"}" + put(1) + text("a") + get(1) + b"s"),
            pickled(name("torch", "Size") + b"}b"),
            pickled(b"]" + put(1) + get(1) + b"\x85" + put(2) + b"0" + get(1) + get(2) + b"a"),
        ]
    )


def repeated_state(random_: random.Random) -> bytes:
    """A large dict that becomes the state of a small one again and again."""
    items = b"".join(text(f"k{i}") + b"N" for i in range(random_.randrange(1000, 4000)))
    build = get(1) + b"b"
    return pickled(
        b"}(" + items + b"u" + put(1),
        name("collections", "OrderedDict") + b")R",
        build * random_.randrange(3000, 9000),
        b"\x86",
    )


def deep(random_: random.Random) -> bytes:
    depth = random_.randrange(10_000, 300_000)
    return random_.choice(
        [
            state(b"]" * depth + b"a" * (depth - 1)),
            state(b"N" + b"\x85" * depth),
            state(b"(" * depth + b"N" + b"t" * depth),
            state((b"}" + b"N") * depth + b"}" + b"s" * depth),
        ]
    )


def wrong_arguments(random_: random.Random) -> bytes:
    """A function that torch.save uses, with arguments that it never gives."""
    word = random_.choice(
        ["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter"]
    )
    values = [
        storage(),
        number(3),
        sizes(2),
        sizes(1),
        b"N",
        b"}",
        b"]",
        text("a"),
        b"\x88",
        name("torch", "float32"),
    ]
    arguments = b"".join(random_.choice(values) for _ in range(random_.randrange(0, 8)))
    return state(name("torch._utils", word) + b"(" + arguments + b"tR")


def wrong_storage(random_: random.Random) -> bytes:
    values = [
        text("storage"),
        name("torch", "FloatStorage"),
        text("0"),
        text("cpu"),
        number(4),
        number(-1),
        b"N",
        b"]",
    ]
    described = b"(" + b"".join(random_.choice(values) for _ in range(random_.randrange(0, 7))) + b"tQ"
    return state(described)


def code(random_: random.Random) -> bytes:
    module, word = random_.choice(
        [
            ("os", "system"),
            ("builtins", "eval"),
            ("subprocess", "Popen"),
            ("functools", "partial"),
            ("torch", "load"),
        ]
    )
    return state(name(module, word) + b"(" + text("touch /tmp/owned") + b"tR")


def shuffled(random_: random.Random) -> bytes:
    """Operations in random order."""
    good = bytearray(state())
    for _ in range(random_.randrange(1, 20)):
        good[random_.randrange(2, len(good) - 1)] = random_.choice(b"()]}lt\x85\x86\x87abeRQu0.Nh\x81")
    return bytes(good)


KINDS: dict[str, Kind] = {
    function.__name__: function
    for function in (
        *(chained_encode, repeated_encode, doubled_tuples, doubled_keys, colliding_tuples, repeated_copies),
        *(repeated_tensors, repeated_parameters, nested_parameters, giant_shape, many_dims, negative_shape),
        *(
            giant_storage,
            huge_argument,
            giant_integer,
            giant_text,
            cycle,
            repeated_state,
            deep,
            wrong_arguments,
        ),
        *(wrong_storage, code, shuffled),
    )
}


def hostile_pickles(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` pickles with the names of their kinds, which take turns. The same seed gives the same pickles."""
    random_ = random.Random(seed)  # noqa: S311
    names = list(KINDS)
    for i in range(count):
        kind = names[i % len(names)]
        yield f"{kind}-{seed}-{i}", KINDS[kind](random_)


def pickle_of(value: Any) -> bytes:
    """The pickle that torch.save makes of the value."""
    import torch

    out = io.BytesIO()
    torch.save(value, out)
    with zipfile.ZipFile(out) as archive:
        return archive.read("archive/data.pkl")


def torch_file(data: bytes) -> bytes:
    """A file in the form of torch.save with this pickle and a storage of 16 bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", bytes(16))
        archive.writestr("archive/version", b"3\n")
    return out.getvalue()
