"""The forward pass of wav2vec2 with a CTC head, for inference only (Baevski et al. 2020).

Both kinds of ``Wav2Vec2ForCTC``: those with layer norms in the extractor and before each block
(voxrex, XLS-R, MMS), and those with one group norm in the extractor and norms after each block
(wav2vec2-base).

What it does otherwise than transformers: everything is channels-last, shape (time, channels), where
transformers turns the tensor around before and after each of the extractor's norms. There a
convolution with stride s and kernel k is a matrix product: row i of its left side is the k *
channels values that start at row s * i, which is a view of the input, not a copy. Query, key and
value are one product, and the weight norm of the positional convolution is folded. Several windows
are done together without padding: their frames lie one after another in the products, and only what
looks along time (convolutions, attention) is done window by window.

In bfloat16 the products are, while what runs from block to block is added up and normalised in
float32: that takes a quarter off the error, for next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from transcribed.speech.products import Linear, QuantizedLinear


@dataclass(frozen=True)
class LayerNorm:
    """Over the channels."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """x of shape (..., channels)."""
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True)
class TimeNorm:
    """A group norm with a group a channel: each channel is normalised over time."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """x of shape (time, channels)."""
        # In float32: over tens of thousands of values bfloat16 would add up too much rounding.
        variance, mean = torch.var_mean(x.float(), 0, correction=0)
        scale = torch.rsqrt(variance + self.epsilon) * self.weight
        return torch.addcmul(self.bias - mean * scale, x.float(), scale).to(x.dtype)


@dataclass(frozen=True)
class Convolution:
    """Over time, without padding; the product's weight has shape (out, kernel * in)."""

    product: Linear
    norm: LayerNorm | TimeNorm | None
    kernel: int
    stride: int

    def __call__(self, x: Tensor) -> Tensor:
        """x of shape (time, in), contiguous; the gelu of the result has shape (frames, out)."""
        time, channels = x.shape
        frames = (time - self.kernel) // self.stride + 1
        rows = x.as_strided((frames, self.kernel * channels), (self.stride * channels, 1))
        if self.norm is None:
            return self.product.gelu(rows)
        return functional.gelu(self.norm(self.product(rows)))


@dataclass(frozen=True)
class Position:
    """The convolution that stands for positional embeddings: grouped, and as long as its input.

    :ivar weight: of shape (channels, channels / groups, kernel), its weight norm folded in.
    """

    weight: Tensor
    bias: Tensor
    groups: int

    def __call__(self, x: Tensor) -> Tensor:
        """x of shape (frames, channels)."""
        y = functional.conv1d(
            x.t().unsqueeze(0),
            self.weight,
            self.bias,
            padding=self.weight.shape[-1] // 2,
            groups=self.groups,
        )
        # An even kernel gives one frame too many.
        return functional.gelu(y[0, :, : len(x)].t())


@dataclass(frozen=True)
class Attention:
    """Multi-head self-attention, query, key and value in one product."""

    qkv: Linear | QuantizedLinear
    out: Linear | QuantizedLinear
    heads: int

    def __call__(self, x: Tensor, lengths: list[int]) -> Tensor:
        """x of shape (frames, channels): windows of `lengths` frames, each by itself."""
        frames, channels = x.shape
        qkv = self.qkv(x).view(frames, 3, self.heads, channels // self.heads).permute(1, 2, 0, 3)
        windows = [
            functional.scaled_dot_product_attention(*window.unsqueeze(1))[0].transpose(0, 1)
            for window in qkv.split(lengths, dim=2)
        ]
        y = windows[0] if len(windows) == 1 else torch.cat(windows)
        return self.out(y.reshape(frames, channels))


@dataclass(frozen=True)
class Adapter:
    """What MMS adds to each block for a language (Pratap et al. 2023)."""

    norm: LayerNorm
    down: Linear
    up: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """x of shape (frames, channels)."""
        return self.up(functional.relu(self.down(self.norm(x))))


@dataclass(frozen=True)
class Block:
    """One layer of the transformer.

    :ivar dtype: of the products' inputs; what goes through is float32.
    """

    attention: Attention
    first_norm: LayerNorm
    up: Linear | QuantizedLinear
    down: Linear | QuantizedLinear
    second_norm: LayerNorm
    norm_first: bool
    dtype: torch.dtype
    adapter: Adapter | None = None

    def __call__(self, x: Tensor, lengths: list[int]) -> Tensor:
        """x float32, of shape (frames, channels): windows of `lengths` frames."""
        if self.norm_first:
            x = x + self.attention(self.first_norm(x).to(self.dtype), lengths)
            x = x + self.down(self.up.gelu(self.second_norm(x).to(self.dtype)))
            return x if self.adapter is None else x + self.adapter(x)
        x = self.first_norm(x + self.attention(x.to(self.dtype), lengths))
        return self.second_norm(x + self.down(self.up.gelu(x.to(self.dtype))))


@dataclass(frozen=True)
class Wav2Vec2:
    """The whole network, on one device.

    Of one dtype up to and in the blocks' products; adapters, the blocks' norms and what comes after
    them are float32.
    """

    extractor: list[Convolution]
    feature_norm: LayerNorm
    feature_projection: Linear
    position: Position
    encoder_norm: LayerNorm
    blocks: list[Block]
    head: Linear
    norm_first: bool

    def __call__(self, windows: Sequence[Tensor]) -> list[Tensor]:
        """The logits of each window, as if it were alone.

        :param windows: normalised samples, each of shape (samples,), at least as many as the
            receptive field has.
        :returns: float32, each of shape (frames, tokens).
        """
        extracted = [self._extract(window) for window in windows]
        lengths = [len(features) for features in extracted]
        x = self.feature_projection(self.feature_norm(torch.cat(extracted)))
        x = x.float() + torch.cat([self.position(window) for window in x.split(lengths)])
        if not self.norm_first:
            x = self.encoder_norm(x)
        for block in self.blocks:
            x = block(x, lengths)
        if self.norm_first:
            x = self.encoder_norm(x)
        return list(self.head(x).split(lengths))

    def _extract(self, samples: Tensor) -> Tensor:
        x = samples.to(self.feature_projection.weight).unsqueeze(-1)
        for convolution in self.extractor:
            x = convolution(x)
        return x
