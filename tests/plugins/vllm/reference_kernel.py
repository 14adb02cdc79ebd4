"""A linear kernel in plain torch for vLLM, which lacks kernels for packed codes of some widths on the CPU.

vLLM calls `register` through an entry point that the tests provide (`tests/plugins/vllm/serving.py`). The kernel
decodes what compressed-tensors documents, without any code of ours: unsigned codes in little-endian int32 words along
the columns, and zero points packed in the same way along the rows.
"""

from __future__ import annotations

import torch
from vllm.model_executor.kernels.linear import MPLinearKernel, register_linear_kernel
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearLayerConfig
from vllm.platforms import PlatformEnum


def register() -> None:
    register_linear_kernel(ReferenceKernel, PlatformEnum.CPU, "mp")


class ReferenceKernel(MPLinearKernel):  # type: ignore[misc]
    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @classmethod
    def can_implement(cls, config: MPLinearLayerConfig) -> tuple[bool, str | None]:  # noqa: ARG003
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        packed, scales, zero_points = self._get_weight_params(layer)
        bits, columns = self.config.weight_type.size_bits, self.config.partition_weight_shape[0]
        codes = unpacked(packed, bits)[:, :columns]
        zeros = torch.full_like(scales, 2 ** (bits - 1)).float()
        if zero_points is not None:
            zeros = unpacked(zero_points.t().contiguous(), bits).t()[: len(codes)].float()
        group = columns // scales.shape[1]
        shifted = codes.float() - zeros.repeat_interleave(group, 1)
        layer.decoded = (shifted * scales.float().repeat_interleave(group, 1)).to(self.config.act_type)

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        decoded: torch.Tensor = layer.decoded  # type: ignore[assignment]
        return torch.nn.functional.linear(x, decoded, bias)


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [rows, words] → int64 [rows, words · 32 / bits] of unsigned codes, the low bits first."""
    bits_of_words = (words[..., None].long() >> torch.arange(32)) & 1
    stream = bits_of_words.flatten(-2)[:, : words.shape[1] * 32 // bits * bits]
    return (stream.reshape(len(words), -1, bits) << torch.arange(bits)).sum(-1)
