"""CTC recognition with the network of our own: voxrex, XLS-R, MMS, wav2vec2-base and their like.

Imports no transformers: all it needs is in the converted file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy
import numpy.typing
import torch
from safetensors import safe_open
from torch import Tensor

from transcribed.errors import ModelUnavailable, RecognitionFailed
from transcribed.recognition import Model, WindowResult
from transcribed.speech import Sound, check_language
from transcribed.speech.audio import Samples
from transcribed.speech.converted import Layout, read
from transcribed.speech.decoding import Alphabet, heard
from transcribed.speech.packed import mapped
from transcribed.speech.products import Linear, QuantizedLinear
from transcribed.speech.wav2vec2 import (
    Adapter,
    Attention,
    Block,
    Convolution,
    Extractor,
    LayerNorm,
    Position,
    TimeNorm,
    Wav2Vec2,
)

Find = Callable[[str], Tensor | None]
"""Finds a tensor by its name."""

_TORCH_EPSILON = 1e-5
"""torch's default for norms, which transformers leaves those of extractor and adapters at."""


class NativeRecognizer:
    """A converted checkpoint. Implements ``Recognizer``."""

    def __init__(self, model: Model, threads: int, language: str) -> None:
        """See :func:`transcribed.speech.load`."""
        check_language(model, language, ModelUnavailable)
        torch.set_num_threads(threads)
        self._model = model
        self._layout = read(Path(model.converted))
        self.precision: str = self._layout.precision
        self._stride = math.prod(self._layout.strides)
        # Where there is one vocabulary, it is that of whatever language is asked for.
        self._default = "" if model.languages is None else language or self._layout.language
        if model.languages is not None and not self._default:
            raise ModelUnavailable(f"{model.name} must be told which of its languages to recognize")
        with safe_open(model.converted, framework="pt", device=model.device) as file:
            names = set(file.keys())
            try:
                self._network = _network(
                    self._layout, lambda name: file.get_tensor(name) if name in names else None
                )
            except (RuntimeError, ValueError) as e:
                raise ModelUnavailable(f"{model.converted}: {e}: delete it and restart") from e
        self._language = ""
        self._alphabet = Alphabet([], "")
        self._switch(self._default)

    def _switch(self, language: str) -> None:
        """Make ready for another language: only MMS-like models have more than one."""
        if not self._alphabet.tokens or language != self._language:
            network = self._network
            if language:
                path = Path(self._model.path) / f"adapter.{language}.safetensors"
                network = _adapted(network, path, self._model.device)
            outputs = len(network.head.weight)
            # Outputs beyond the vocabulary stand for nothing.
            tokens = [*self._layout.tokens[language], *[None] * outputs][:outputs]
            self._network, self._language = network, language
            self._alphabet = Alphabet(tokens, self._layout.delimiter)

    def transcribe(self, sounds: Sequence[Sound]) -> list[WindowResult]:
        """See :class:`transcribed.speech.Recognizer`."""
        language = sounds[0].language
        check_language(self._model, language, RecognitionFailed)
        if self._default:
            self._switch(language or self._default)
        results: list[WindowResult] = []
        for sound, logits in zip(sounds, self._logits([s.samples for s in sounds]), strict=True):
            best = logits.softmax(-1).max(-1)
            ids, probabilities = best.indices.cpu().numpy(), best.values.cpu().numpy()
            results.append(heard(self._alphabet, ids, probabilities, sound.span, self._stride))
        return results

    def logits(self, samples: Samples) -> numpy.typing.NDArray[numpy.float32]:
        """What the network gives for a window, shape (frames, tokens); for comparing engines."""
        logits: numpy.typing.NDArray[numpy.float32] = self._logits([samples])[0].cpu().numpy()
        return logits

    def _logits(self, windows: Sequence[Samples]) -> list[Tensor]:
        with torch.inference_mode():
            return self._network([self._prepare(window) for window in windows])

    def _prepare(self, samples: Samples) -> Tensor:
        """Normalised as the checkpoint was trained, and long enough for one frame."""
        if self._layout.normalize and len(samples):
            # transformers' Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm.
            samples = (samples - samples.mean()) / numpy.sqrt(samples.var() + 1e-7)
        short = max(0, self._layout.field - len(samples))
        padded = torch.nn.functional.pad(torch.from_numpy(samples), (0, short))
        return padded.to(self._model.device)


def _network(layout: Layout, find: Find) -> Wav2Vec2:
    def tensor(name: str) -> Tensor:
        found = find(name)
        assert found is not None, name
        return found

    def packed(name: str, dtype: torch.dtype) -> Tensor:
        return mapped(tensor(f"{name}.packed"), tensor(f"{name}.description"), dtype)

    def linear(name: str) -> Linear:
        plain, bias = find(f"{name}.weight"), find(f"{name}.bias")
        if plain is not None:
            return Linear(plain, bias)
        return Linear(packed(name, getattr(torch, layout.dtype)), bias, layout.kernel)

    def product(name: str) -> Linear | QuantizedLinear:
        scales = find(f"{name}.scales")
        if scales is None:
            return linear(name)
        return QuantizedLinear.of(packed(name, torch.int8), scales, tensor(f"{name}.rest"))

    def norm(name: str, epsilon: float = layout.epsilon) -> LayerNorm:
        return LayerNorm(tensor(f"{name}.weight"), tensor(f"{name}.bias"), epsilon)

    def convolution(i: int) -> Convolution:
        name = f"feature_extractor.conv_layers.{i}"
        normed = find(f"{name}.layer_norm.weight") is not None
        after = norm(f"{name}.layer_norm", _TORCH_EPSILON) if normed else None
        return Convolution(linear(f"{name}.conv"), after, layout.kernels[i], layout.strides[i])

    def time_norm(name: str) -> TimeNorm | None:
        weight = find(f"{name}.weight")
        return None if weight is None else TimeNorm(weight, tensor(f"{name}.bias"), _TORCH_EPSILON)

    def adapter(name: str) -> Adapter | None:
        return _adapter(name, tensor) if find(f"{name}.norm.weight") is not None else None

    def block(i: int) -> Block:
        name = f"encoder.layers.{i}"
        qkv, out = product(f"{name}.attention.qkv"), product(f"{name}.attention.out_proj")
        return Block(
            Attention(qkv, out, layout.heads),
            norm(f"{name}.layer_norm"),
            product(f"{name}.feed_forward.intermediate_dense"),
            product(f"{name}.feed_forward.output_dense"),
            norm(f"{name}.final_layer_norm"),
            layout.norm_first,
            getattr(torch, layout.dtype),
            adapter(f"{name}.adapter_layer"),
        )

    position = "encoder.pos_conv_embed.conv"
    return Wav2Vec2(
        Extractor(
            [convolution(i) for i in range(len(layout.kernels))],
            time_norm("feature_extractor.conv_layers.0.time_norm"),
            layout.field,
        ),
        norm("feature_projection.layer_norm"),
        linear("feature_projection.projection"),
        Position(tensor(f"{position}.weight"), tensor(f"{position}.bias"), layout.groups),
        norm("encoder.layer_norm"),
        [block(i) for i in range(layout.layers)],
        linear("lm_head"),
        layout.norm_first,
    )


def _adapter(name: str, tensor: Callable[[str], Tensor]) -> Adapter:
    def linear(part: str) -> Linear:
        return Linear(tensor(f"{name}.{part}.weight"), tensor(f"{name}.{part}.bias"))

    norm = LayerNorm(tensor(f"{name}.norm.weight"), tensor(f"{name}.norm.bias"), _TORCH_EPSILON)
    return Adapter(norm, linear("linear_1"), linear("linear_2"))


def _adapted(network: Wav2Vec2, path: Path, device: str) -> Wav2Vec2:
    """The network with a language's adapters and output layer."""
    with safe_open(path, framework="pt", device=device) as file:

        def tensor(name: str) -> Tensor:
            found: Tensor = file.get_tensor(name)
            return found.float()

        blocks = [
            replace(block, adapter=_adapter(f"wav2vec2.encoder.layers.{i}.adapter_layer", tensor))
            for i, block in enumerate(network.blocks)
        ]
        head = Linear(tensor("lm_head.weight"), tensor("lm_head.bias"))
        return replace(network, blocks=blocks, head=head)
