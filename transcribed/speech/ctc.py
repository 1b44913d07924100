"""CTC recognition with transformers: wav2vec2, HuBERT, WavLM, MMS and their like.

Connectionist temporal classification (Graves et al. 2006): the network gives, for every frame of
20 ms, the probabilities of the tokens and of a blank. Greedy decoding takes the most probable one
of each frame, joins equal neighbours and drops the blanks.
"""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers

from transcribed.errors import ModelUnavailable, RecognitionFailed
from transcribed.recognition import CTCResult, Model, Run
from transcribed.speech import Span
from transcribed.speech.audio import RATE, Samples


class CTCRecognizer:
    """A ``*ForCTC`` checkpoint that takes raw samples. Implements ``Recognizer``."""

    precision = "float32"

    def __init__(self, model: Model, threads: int, language: str) -> None:
        """See :func:`transcribed.speech.load`."""
        _check_language(model, language, ModelUnavailable)
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        # Not AutoProcessor: repositories with a language model declare a processor that needs
        # pyctcdecode, which greedy decoding has no use for.
        self._features = transformers.AutoFeatureExtractor.from_pretrained(
            model.path, local_files_only=True
        )
        self._default = language or _declared_language(model)
        # MMS-like: its vocabulary is nested, and makes no sense without a language.
        nested = {} if model.languages is None else {"target_lang": self._default}
        self._tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(
            model.path, local_files_only=True, **nested
        )
        config = transformers.AutoConfig.from_pretrained(model.path, local_files_only=True)
        self._stride, self._field = _geometry(model, config, self._features)
        self._network, loading = transformers.AutoModelForCTC.from_pretrained(
            model.path, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        self._network.eval()
        if any(key.startswith("lm_head.") for key in loading["missing_keys"]):
            raise ModelUnavailable(f"the weights of {model.name} have no CTC head: not fine-tuned")
        self._model = model
        self._language = ""
        self._choose_tokens()
        self._switch(self._default)

    def _switch(self, language: str) -> None:
        """Make ready for another language: only MMS-like models have more than one."""
        if self._model.languages is None or language == self._language:
            return
        self._language = ""  # If this fails half-way, the next window must try it again.
        self._tokenizer.set_target_lang(language)
        # It also puts an output layer of the language's own size in place.
        self._network.load_adapter(language, local_files_only=True, use_safetensors=True)
        self._network.eval()
        self._choose_tokens()
        self._language = language

    def _choose_tokens(self) -> None:
        """Which characters each output of the network stands for; None for those left out."""
        tokenizer = self._tokenizer
        self._delimiter: str = tokenizer.word_delimiter_token
        # The tokenizer's own list of special tokens may hold the delimiter, which must stay.
        dropped = {
            tokenizer.pad_token_id,  # which is the blank
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.unk_token_id,
        }
        self._tokens: list[str | None] = [None] * self._network.lm_head.out_features
        for token, i in tokenizer.encoder.items():
            if i < len(self._tokens) and i not in dropped:
                lower = tokenizer.do_lower_case and token != self._delimiter
                self._tokens[i] = token.lower() if lower else token

    def transcribe(self, samples: Samples, span: Span, language: str) -> CTCResult:
        """See :class:`transcribed.speech.Recognizer`."""
        _check_language(self._model, language, RecognitionFailed)
        self._switch(language or self._default)
        runs: list[Run] = []
        if len(samples):
            ids, probabilities = self._best(samples)
            first = span.start * RATE // self._stride
            kept = [
                first + j
                for j in range(len(ids))
                if span.answers_for((first + j) * self._stride / RATE)
            ]
            if kept:
                core = slice(kept[0] - first, kept[-1] + 1 - first)
                runs = self._runs(ids[core], probabilities[core], kept[0])
        return CTCResult(self._stride / RATE, self._delimiter, runs)

    def _best(self, samples: Samples) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Each frame's most probable output and its probability, both of shape (frames,)."""
        # One window at a time needs no padding and so no attention mask, whether or not the
        # checkpoint was trained with one (return_attention_mask): all of it would be ones.
        inputs = self._features(
            samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=False
        ).input_values
        short = self._field - inputs.shape[-1]
        if short > 0:
            inputs = torch.nn.functional.pad(inputs, (0, short))
        with torch.inference_mode():
            best = self._network(inputs).logits[0].float().softmax(-1).max(-1)
        return best.indices.numpy(), best.values.numpy()

    def _runs(self, ids: numpy.ndarray, probabilities: numpy.ndarray, first: int) -> list[Run]:
        """The runs of equal `ids`, of which the first is the recording's frame `first`."""
        starts = [0, *(numpy.flatnonzero(numpy.diff(ids)) + 1).tolist()]
        runs = []
        for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
            token = self._tokens[ids[start]]
            if token is not None:
                # Rounded: a window's runs must fit into one AMP value, as JSON.
                confidence = round(float(probabilities[start:stop].mean()), 4)
                runs.append(Run(token, first + start, stop - start, confidence))
        return runs


def _declared_language(model: Model) -> str:
    """The language that an MMS-like checkpoint recognizes when none is asked for; else empty."""
    if model.languages is None:
        return ""
    options: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        options = json.loads((Path(model.path) / "tokenizer_config.json").read_bytes())
    declared = options.get("target_lang") if isinstance(options, dict) else None
    if declared not in model.languages:
        raise ModelUnavailable(f"{model.name} must be told which of its languages to recognize")
    return str(declared)


def _check_language(model: Model, language: str, error: type[Exception]) -> None:
    if language and model.languages is not None and language not in model.languages:
        raise error(f"{model.name} does not have the language {language!r}")


def _geometry(model: Model, config: Any, features: Any) -> tuple[int, int]:
    """Samples from one frame to the next, and samples that the first frame needs."""
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
    return stride, field
