"""What a CTC checkpoint's files say beside its weights, read with transformers."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from transcribed.errors import ModelUnavailable
from transcribed.recognition import Model
from transcribed.speech.audio import RATE
from transcribed.speech.decoding import Alphabet


@dataclass(frozen=True)
class Geometry:
    """How frames lie on samples.

    :ivar stride: samples from one frame to the next.
    :ivar field: samples that the first frame needs.
    """

    stride: int
    field: int


class Checkpoint:
    """A ``*ForCTC`` checkpoint that takes raw samples at 16 kHz; raises :exc:`ModelUnavailable`.

    :ivar config: of the network.
    :ivar features: how samples are prepared.

    :param language: of an MMS-like one, one that it has.
    """

    def __init__(self, model: Model, language: str) -> None:
        transformers.utils.logging.disable_progress_bar()
        # Not AutoProcessor: repositories with a language model declare a processor that needs
        # pyctcdecode, which greedy decoding has no use for.
        self.features = transformers.AutoFeatureExtractor.from_pretrained(
            model.path, local_files_only=True
        )
        # MMS-like: its vocabulary is nested, and makes no sense without a language.
        nested = {} if model.languages is None else {"target_lang": language}
        self._tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(
            model.path, local_files_only=True, **nested
        )
        self.config = transformers.AutoConfig.from_pretrained(model.path, local_files_only=True)
        self.geometry = _geometry(model, self.config, self.features)

    def alphabet(self, language: str = "") -> Alphabet:
        """The tokens, of an MMS-like one in `language`."""
        tokenizer = self._tokenizer
        if language:
            tokenizer.set_target_lang(language)
        delimiter: str = tokenizer.word_delimiter_token
        # The tokenizer's own list of special tokens may hold the delimiter, which must stay.
        dropped = {
            tokenizer.pad_token_id,  # which is the blank
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.unk_token_id,
        }
        tokens: list[str | None] = [None] * (max(tokenizer.encoder.values()) + 1)
        for token, i in tokenizer.encoder.items():
            if i not in dropped:
                lower = tokenizer.do_lower_case and token != delimiter
                tokens[i] = token.lower() if lower else token
        return Alphabet(tokens, delimiter)


def declared_language(model: Model) -> str:
    """The language that an MMS-like checkpoint says it is set to; empty where there is none."""
    if model.languages is None:
        return ""
    options: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        options = json.loads((Path(model.path) / "tokenizer_config.json").read_bytes())
    declared = options.get("target_lang") if isinstance(options, dict) else None
    return str(declared) if declared in model.languages else ""


def _geometry(model: Model, config: Any, features: Any) -> Geometry:
    strides = getattr(config, "conv_stride", None)
    kernels = getattr(config, "conv_kernel", None)
    raw = isinstance(features, transformers.Wav2Vec2FeatureExtractor)
    if not raw or not strides or not kernels or getattr(config, "add_adapter", False):
        raise ModelUnavailable(f"{model.name} does not take samples as wav2vec2 does")
    if features.sampling_rate != RATE:
        raise ModelUnavailable(f"{model.name} works at {features.sampling_rate} Hz, not at {RATE}")
    stride = math.prod(strides)
    if RATE % stride:
        raise ModelUnavailable(f"the frames of {model.name} do not fit into a second")
    # Dumoulin & Visin 2016, "A guide to convolution arithmetic for deep learning", backwards from
    # one frame.
    field = 1
    for kernel, step in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * step + kernel
    return Geometry(stride, field)
