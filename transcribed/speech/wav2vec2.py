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

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from transcribed.speech.packed import ROWS
from transcribed.speech.products import Linear, QuantizedLinear

_FRAMES = 50
"""About so many the extractor makes at once."""


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

    def folded(self, product: Linear, rows: Tensor) -> Linear:
        """A product that gives of `rows` what ``self`` makes of what `product` gives of them.

        What is normalised need not be there for that: the mean and the variance of a product follow
        from its input's.

        :param product: with plain weights. Its bias plays no part: it goes with the mean.
        :param rows: shape (time, in).
        """
        x, weight = rows.double(), product.weight.double()
        mean = x.mean(0)
        covariance = torch.atleast_2d(torch.cov(x.t(), correction=0))
        variance = (weight @ covariance * weight).sum(1)
        scale = torch.rsqrt(variance + self.epsilon) * self.weight
        bias = self.bias - weight @ mean * scale
        dtype = product.weight.dtype
        return replace(product, weight=(weight * scale[:, None]).to(dtype), bias=bias.to(dtype))


@dataclass(frozen=True)
class Convolution:
    """Over time, without padding; the product's weight has shape (out, kernel * in)."""

    product: Linear
    norm: LayerNorm | None
    kernel: int
    stride: int

    def rows(self, x: Tensor) -> Tensor:
        """What the product is of, shape (frames, kernel * in): a view of x.

        :param x: contiguous, of shape (time, in).
        """
        time, channels = x.shape
        frames = (time - self.kernel) // self.stride + 1
        return x.as_strided(
            (frames, self.kernel * channels), (self.stride * channels, 1), x.storage_offset()
        )

    def __call__(self, x: Tensor) -> Tensor:
        """x of shape (time, in), contiguous; the gelu of the result has shape (frames, out)."""
        rows = self.rows(x)
        if self.norm is None:
            return self.product.gelu(rows)
        return functional.gelu(self.norm(self.product(rows)))


@dataclass(frozen=True)
class Extractor:
    """The convolutions that make features of samples.

    Done in pieces of about a second, each through all layers, for what lies between two layers
    would be a hundred megabytes for a window: more than the caches hold, and memory that is new
    from the kernel each time.

    :ivar time_norm: of what the first convolution gives, if it has one.
    :ivar field: the receptive field: samples that the first frame needs.
    """

    convolutions: list[Convolution]
    time_norm: TimeNorm | None
    field: int

    def __call__(self, samples: Tensor) -> Tensor:
        """Samples of shape (time,), at least the receptive field; features (frames, channels)."""
        first, *others = self.convolutions
        x = samples.unsqueeze(-1)
        if self.time_norm is not None:
            product = self.time_norm.folded(first.product, first.rows(x))
            first = replace(first, product=product)
        stride = math.prod(convolution.stride for convolution in self.convolutions)
        features = []
        for start, stop in _pieces((len(x) - self.field) // stride + 1, _FRAMES, x.device):
            y = x[start * stride : (stop - 1) * stride + self.field]
            for convolution in (first, *others):
                y = convolution(y)
            features.append(y)
        return torch.cat(features)


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
        else:
            x = self.first_norm(x + self.attention(x.to(self.dtype), lengths))
        for start, stop in _pieces(len(x), ROWS, x.device):
            self._feed_forward(x[start:stop])
        return x if self.adapter is None else x + self.adapter(x)

    def _feed_forward(self, x: Tensor) -> None:
        """What comes after the attention, in place."""
        y = self.second_norm(x) if self.norm_first else x
        x += self.down(self.up.gelu(y.to(self.dtype)))
        if not self.norm_first:
            x.copy_(self.second_norm(x))


@dataclass(frozen=True)
class Wav2Vec2:
    """The whole network, on one device.

    Of one dtype up to and in the blocks' products; adapters, the blocks' norms and what comes after
    them are float32.
    """

    extractor: Extractor
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
        dtype = self.feature_projection.weight.dtype
        extracted = [self.extractor(window.to(dtype)) for window in windows]
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


def _pieces(total: int, size: int, device: torch.device) -> list[tuple[int, int]]:
    """Where to cut `total` rows, so that each piece has about `size`: starts and stops.

    For the caches of a CPU's cores. A GPU wants all at once.
    """
    count = max(1, round(total / size)) if device.type == "cpu" else 1
    return list(pairwise(total * i // count for i in range(count + 1)))
