"""Matrix products with constant weights: which kernel computes them, and in which precision.

torch hands the products of ``linear`` to MKL in float32 and to oneDNN in bfloat16; oneDNN can be
asked for directly as well, and can apply gelu to the result while it is in the cache. Which way is
fastest depends on the CPU, so :func:`fastest` measures it, once, when a checkpoint is converted.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from transcribed.speech.packed import ROWS, pack

Kernel = Literal["torch", "onednn", "onednn-gelu"]
"""``torch.nn.functional.linear``; oneDNN; oneDNN with gelu as part of the product."""


@dataclass(frozen=True)
class Linear:
    """``x @ weight.T + bias``; weight of shape (out, in), bias of shape (out,).

    What oneDNN is given is packed weights.
    """

    weight: Tensor
    bias: Tensor | None
    kernel: Kernel = "torch"

    def __call__(self, x: Tensor) -> Tensor:
        """Of x, shape (rows, in), the product, shape (rows, out)."""
        if self.kernel == "torch":
            return functional.linear(x, self.weight, self.bias)
        return _onednn(x, self.weight, self.bias, "none")

    def gelu(self, x: Tensor) -> Tensor:
        """The exact gelu of the product."""
        if self.kernel == "onednn-gelu":
            return _onednn(x, self.weight, self.bias, "gelu")
        return functional.gelu(self(x))


@dataclass(frozen=True)
class QuantizedLinear:
    """The same in int8: weights with a scale per output, inputs with a range per row.

    Jacob et al. 2018, "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference". A range per row makes a row's result independent of the
    other rows, so of what else is in its batch.

    :ivar weight: int8, packed.
    :ivar scales: float32, shape (out,).
    :ivar rest: what does not depend on the input's quantized part: the sum of each output's
        weights, and its bias; float32, shape (2, out).
    :ivar levels: the largest quantized input.
    """

    weight: Tensor
    scales: Tensor
    zeros: Tensor
    rest: Tensor
    levels: int

    @classmethod
    def of(cls, weight: Tensor, scales: Tensor, rest: Tensor) -> QuantizedLinear:
        """From weights of shape (out, in), packed; the rest as above."""
        # Without VNNI instructions two products are added in 16 bits, which inputs of 7 bits do not
        # overflow: 2 * 127 * 127 < 2**15.
        levels = 255 if torch.cpu._is_vnni_supported() else 127
        return cls(weight, scales, torch.zeros(len(scales), dtype=torch.int32), rest, levels)

    def __call__(self, x: Tensor) -> Tensor:
        """Of x, shape (rows, in), the product, shape (rows, out), in the dtype of x."""
        dtype = x.dtype
        # Of what torch has for each step, what is done by vector instructions on a CPU: five to
        # twenty times as fast as aminmax, addcdiv and a conversion to uint8 in one go.
        x = x.float()
        least = x.amin(-1, keepdim=True)
        scale = (x.amax(-1, keepdim=True) - least).clamp_min_(1e-12).div_(self.levels)
        # x = scale * quantized + least, so the product has a part of each. Half a step is added, as
        # the conversion does not round but truncates.
        steps = (x - least).mul_(scale.reciprocal()).add_(0.5)
        quantized = steps.to(torch.int16).to(torch.uint8)
        product = torch.ops.onednn.qlinear_pointwise(
            quantized, 1.0, 0, self.weight, self.scales, self.zeros,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return (
            product.mul_(scale).addmm_(functional.pad(least, (0, 1), value=1), self.rest).to(dtype)
        )

    def gelu(self, x: Tensor) -> Tensor:
        """The exact gelu of the product."""
        return functional.gelu(self(x))


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of shape (out, in) as int8, and their scales as float32 of shape (out,)."""
    scales = weight.float().abs().amax(1).clamp_min(1e-12) / 127
    return (weight.float() / scales[:, None]).round().to(torch.int8), scales


def fastest(dtype: torch.dtype) -> Kernel:
    """The kernel that is the fastest on this CPU at the shapes that wav2vec2-large is made of.

    oneDNN's from packed weights.

    Takes about three seconds. Measured with one thread, as most workers have one.
    """
    if not torch.backends.mkldnn.is_available():
        return "torch"
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "torch"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(ROWS, 1024, generator=generator).to(dtype)
        up = torch.randn(4096, 1024, generator=generator).to(dtype)
        down = torch.randn(1024, 4096, generator=generator).to(dtype)
        bias = torch.zeros(4096, dtype=dtype)
        packed = pack(up), pack(down)
        best: dict[Kernel, float] = dict.fromkeys(get_args(Kernel), math.inf)
        with torch.inference_mode():
            for _ in range(12):
                for kernel in best:
                    first, second = (up, down) if kernel == "torch" else packed
                    started = time.perf_counter()
                    Linear(second, bias[:1024], kernel)(Linear(first, bias, kernel).gelu(x))
                    best[kernel] = min(best[kernel], time.perf_counter() - started)
        return min(best, key=best.__getitem__)
    finally:
        torch.set_num_threads(threads)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, after: str) -> Tensor:
    how = "none" if after == "gelu" else ""  # gelu by erf, not by tanh
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], how)
    return product
