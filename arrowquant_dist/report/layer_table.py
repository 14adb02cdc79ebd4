"""All layers as one line of JSON for the page's table, of which a script draws the visible rows (templates/layers.js).

The JSON is small: 10,000 layers take about half a megabyte. It has columns instead of rows. A name is stored as the
number of characters that it shares with the one before, and the rest; in the other columns each different word is
stored only once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

from arrowquant_dist.report import text
from arrowquant_dist.report.layer_rows import LayerRow
from arrowquant_dist.report.text import printable

# (key, title) of each column, in the order of the table.
LAYER_COLUMNS: tuple[tuple[str, str], ...] = (
    ("name", "layer"),
    ("type", "type"),
    ("shape", "shape"),
    ("stored", "stored as"),
    ("params", "params"),
    ("nbytes", "size"),
    ("bits", "bits"),
    ("sqnr", "SQNR dB"),
    ("cosine", "cosine"),
    ("mse", "MSE"),
    ("error", "max error"),
)

# (titles of columns, what these columns contain).
LAYER_MEANINGS: tuple[tuple[str, str], ...] = (
    (
        "stored as",
        "The type of the codes, the method that chose scales and codes, and which values share a scale: 128 values of "
        "a row (`g128`), a whole row (`rows`) or the whole layer (`layer`). With the method `size`, an 8-bit code may "
        "take far less than 8 bits in the file. For a layer that is not quantized: `none` (stored as it was) or "
        "`fp16`, and the reason.",
    ),
    ("params", "Number of values in the layer."),
    (
        "size, bits",
        "Compressed size of the layer in the file, scales included, and this size in bits per value.",
    ),
    (
        "SQNR",
        "How far the error is below the weights, in dB: 10 dB less means ten times the energy of the error. 40 dB is "
        "usual for int8, 20 dB for int4. ∞: nothing is lost.",
    ),
    ("cosine", "Cosine between the stored and the original weights; 1 if they point in the same direction."),
    (
        "MSE, max error",
        "The mean square of the differences from the original weights, and the largest difference.",
    ),
    ("–", "Not measured: the layer is not quantized, is empty, or keeps the codes of its source."),
)


def layer_data(rows: Sequence[LayerRow]) -> str:
    """JSON that is inert within a script element, as it is ASCII without `<`, `>` and `&`. Names are escaped by
    `printable`."""
    shared, rests = _front_coded([printable(row.layer_name) for row in rows])
    columns = {
        "shared": _figures(shared, str),
        "rest": _strings(rests),
        "type": _words(row.layer_type for row in rows),
        "shape": _words(text.shape(row.shape) for row in rows),
        "stored": _words(map(stored_as, rows)),
        "params": _figures((row.params for row in rows), str),
        "nbytes": _figures((row.stored_nbytes for row in rows), str),
        "sqnr": _figures((row.sqnr_db if row.is_quantized else None for row in rows), "{:.2f}".format),
        "cosine": _figures((row.cosine if row.is_quantized else None for row in rows), "{:.6f}".format),
        "mse": _figures((row.mse if row.is_quantized else None for row in rows), "{:.3g}".format),
        "error": _figures((row.max_error if row.is_quantized else None for row in rows), "{:.3g}".format),
    }
    return "{" + ",".join(f'"{name}":{values}' for name, values in columns.items()) + "}"


def stored_as(row: LayerRow) -> str:
    """How a layer is stored: `int4 mse g128`, with `rows` or `layer` in place of `g128` where these share a scale. For
    a kept layer also why it is kept: `none: 1-D`."""
    if not row.is_quantized:
        return f"{row.quant_type}: {row.kept_reason}" if row.kept_reason else row.quant_type
    shares = f"g{row.group_size}" if row.group_size else "rows" if row.quant_axis == 0 else "layer"
    return f"{row.quant_type} {row.method} {shares}"


def _front_coded(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """The number of characters that each name shares with the one before, and the rest of each name. Names that are not
    ASCII share none, because JavaScript counts some characters as two."""
    shared, rests = [], []
    before = ""
    for name in names:
        count = 0
        if name.isascii() and before.isascii():
            pairs = enumerate(zip(before, name, strict=False))
            count = next((at for at, (left, right) in pairs if left != right), min(len(before), len(name)))
        shared.append(count)
        rests.append(name[count:])
        before = name
    return shared, rests


def _words(values: Iterable[str]) -> str:
    """JSON of [the different values, the index of each value among these]."""
    known: dict[str, int] = {}
    indices = [known.setdefault(value, len(known)) for value in values]
    return f"[{_strings(printable(value) for value in known)},{_figures(indices, str)}]"


def _strings(values: Iterable[str]) -> str:
    quoted = json.dumps(list(values), separators=(",", ":"))
    return quoted.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _figures(values: Iterable[float | None], form: Callable[[float], str]) -> str:
    return f"[{','.join('null' if value is None else form(value) for value in values)}]"
