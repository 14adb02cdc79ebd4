"""Decodes packed rows to values with torch's own operations, on any device, bit for bit as kernels/decode.py does.

Avoids Numba, which takes 100 MB of memory once it compiles or loads anything: more than the codes of a small model.
Codes are spread over the bytes of words, all bytes are converted to float32 at once, and scales are multiplied in
place: 590,000 values take 0.1 to 0.2 ms on two cores of a Zen 4, 4 % of the time of their product with 640 inputs.
"""

from __future__ import annotations

import torch

from arrowquant_dist.modules.packed_rows import PackedRows

# bits: (dtype of a word with one byte per code; steps (shift, mask) that move each code to a byte of its own)
_SPREADS: dict[int, tuple[torch.dtype, tuple[tuple[int, int], ...]]] = {
    2: (torch.int32, ((12, 0x000F000F), (6, 0x03030303))),
    3: (torch.int64, ((20, 0x00000FFF00000FFF), (10, 0x003F003F003F003F), (5, 0x0707070707070707))),
    4: (torch.int16, ((4, 0x0F0F),)),
}


def decode_packed(packed: PackedRows) -> torch.Tensor:
    """Returns float32 [rows, columns] in new memory: (code - zero point) · scale, rounded after each operation."""
    values = packed.scales.new_empty(len(packed), packed.columns)
    decode_into(values, packed, packed.codes.new_empty(spread_nbytes(packed, len(packed))))
    return values


def decode_into(values: torch.Tensor, packed: PackedRows, spread: torch.Tensor) -> None:
    """Decodes as decode_packed does, into `values`. spread: scratch memory, as for unpack_into."""
    unpack_into(values, packed, spread)
    if packed.zero_points.shape[1]:
        for part, numbers in _by_group(values, packed.zero_points, packed.group_size):
            part.sub_(numbers)
    for part, numbers in _by_group(values, packed.scales, packed.group_size):
        part.mul_(numbers)


def unpack_into(values: torch.Tensor, packed: PackedRows, spread: torch.Tensor) -> None:
    """Writes the signed codes to float32 `values` [rows, columns]. spread: scratch memory, uint8 [spread_nbytes or
    more], aligned to 8 bytes."""
    if packed.bits == 8:
        values.copy_(packed.codes.view(torch.int8))
        return
    _, steps = _SPREADS[packed.bits]
    words, others = _words(packed, spread)
    _read_words(words, others, packed)
    for shift, mask in steps:
        torch.bitwise_left_shift(words, shift, out=others)
        words.bitwise_or_(others).bitwise_and_(mask)
    codes = words.view(torch.int8).sub_(1 << (packed.bits - 1))
    values.copy_(codes[:, : packed.columns])


def spread_nbytes(packed: PackedRows, rows: int) -> int:
    """Returns the bytes of scratch memory that unpack_into needs for `rows` rows."""
    if packed.bits == 8:
        return 0
    return 2 * rows * _words_a_row(packed) * _SPREADS[packed.bits][0].itemsize


def _words(packed: PackedRows, spread: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns two pieces of the scratch memory as words [rows, words per row]."""
    half = spread_nbytes(packed, len(packed)) // 2
    shape = (len(packed), _words_a_row(packed))
    dtype, _ = _SPREADS[packed.bits]
    return spread[:half].view(dtype).view(shape), spread[half : 2 * half].view(dtype).view(shape)


def _words_a_row(packed: PackedRows) -> int:
    """Returns one word per byte of codes or, with 3 bits, one per three bytes, which hold eight codes."""
    nbytes = packed.codes.shape[1]
    return -(-nbytes // 3) if packed.bits == 3 else nbytes


def _read_words(words: torch.Tensor, others: torch.Tensor, packed: PackedRows) -> None:
    if packed.bits != 3:
        words.copy_(packed.codes)
        return
    words.copy_(packed.codes[:, ::3])
    for k in (1, 2):
        lane = packed.codes[:, k::3]  # the last word may have fewer bytes
        place = slice(lane.shape[1])
        others[:, place].copy_(lane)
        words[:, place].bitwise_or_(others[:, place].bitwise_left_shift_(8 * k))


def _by_group(
    values: torch.Tensor, numbers: torch.Tensor, group: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns views of the whole groups [rows, groups, group] and of a short last one, each with its numbers."""
    columns = values.shape[1]
    whole = columns // group
    found = [(values[:, : whole * group].view(-1, whole, group), numbers[:, :whole, None])] if whole else []
    if whole * group < columns:
        found.append((values[:, whole * group :], numbers[:, whole:]))
    return found
