"""Tensors of GPTQ and AWQ as their formats define them, and the values that they stand for, with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tests.checkpoint.quantized_models import Tensors

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Words:
    """A quantized layer.

    codes: [inputs, outputs]. zeros, scales: [groups, outputs]. groups: [inputs], the group of each input.
    """

    bits: int
    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    groups: np.ndarray

    @classmethod
    def random(
        cls, shape: tuple[int, int], bits: int, group: int, *, by_activation: bool = False, seed: int = 0
    ) -> Words:
        """Random codes, zeros and scales. shape: shape of the weight, [outputs, inputs]. group: inputs per group."""
        generator = np.random.default_rng(seed)
        outputs, inputs = shape
        groups = np.arange(inputs) // group
        if by_activation:
            groups = generator.permutation(groups)
        grid = (-(-inputs // group), outputs)
        codes = generator.integers(0, 1 << bits, (inputs, outputs))
        zeros = generator.integers(0, 1 << bits, grid)
        scales = (generator.random(grid) * 0.01 + 1e-3).astype(np.float16)
        return cls(bits, codes, zeros, scales, groups)

    def weight(self, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        """The decoded weight [outputs, inputs]: (code - zero) · scale, rounded once."""
        products = self.scales.astype(np.float64)[self.groups] * (self.codes - self.zeros[self.groups])
        return torch.from_numpy(np.ascontiguousarray(products.T)).to(dtype)

    def gptq(self, name: str = "a", *, stored_zeros: np.ndarray | None = None) -> Tensors:
        """GPTQ's tensors. stored_zeros: uint32 words; None: those of the checkpoint format `gptq`."""
        mask = (1 << self.bits) - 1
        zeros = pack((self.zeros - 1) & mask, self.bits) if stored_zeros is None else stored_zeros
        return {
            f"{name}.qweight": words(pack(self.codes.T, self.bits).T),
            f"{name}.qzeros": words(zeros),
            f"{name}.scales": torch.from_numpy(self.scales),
            f"{name}.g_idx": torch.from_numpy(self.groups.astype(np.int32)),
        }

    def awq(self, name: str = "a") -> Tensors:
        return {
            f"{name}.qweight": words(pack(interleaved(self.codes), 4)),
            f"{name}.qzeros": words(pack(interleaved(self.zeros), 4)),
            f"{name}.scales": torch.from_numpy(self.scales),
        }

    def gemv(self, name: str = "a") -> Tensors:
        """AWQ's tensors in the GEMV layout: each output has as many zeros and scales as fill whole words, and more if
        groups are small."""
        count = len(self.zeros)
        group = self.codes.shape[0] // count
        times = {32: 4, 64: 2}.get(group, 1)
        width = -(-count // (8 * times)) * 8 * times
        padding = ((0, 0), (0, width - count))
        return {
            f"{name}.qweight": words(pack(self.codes.T, 4)),
            f"{name}.qzeros": words(pack(np.pad(self.zeros.T, padding), 4)),
            f"{name}.scales": torch.from_numpy(np.pad(self.scales.T, padding)),
        }


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Packs [rows, columns] into uint32 [rows, ⌈columns · bits / 32⌉], densely from the low bits up."""
    stream = (values[:, :, None] >> np.arange(bits)) & 1
    stream = stream.reshape(len(values), -1).astype(np.uint8)
    padded = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
    return np.ascontiguousarray(np.packbits(padded, axis=1, bitorder="little")).view("<u4")


def interleaved(values: np.ndarray) -> np.ndarray:
    """The values with every eight of a row in AWQ's order."""
    return values.reshape(len(values), -1, 8)[:, :, AWQ_ORDER].reshape(values.shape)


def words(packed: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(packed).view(np.int32))
