"""CTC recognition with transformers: HuBERT, WavLM, Data2Vec and their like.

The wav2vec2 family has a network of its own, :mod:`transcribed.speech.native`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
import transformers

from transcribed.errors import ModelUnavailable
from transcribed.recognition import Model, WindowResult
from transcribed.speech import Sound, check_language
from transcribed.speech.audio import RATE, Samples
from transcribed.speech.checkpoint import Checkpoint
from transcribed.speech.decoding import Alphabet, heard


class CTCRecognizer:
    """A ``*ForCTC`` checkpoint that takes raw samples. Implements ``Recognizer``."""

    precision = "float32"

    def __init__(self, model: Model, threads: int, language: str) -> None:
        """See :func:`transcribed.speech.load`."""
        check_language(model, language, ModelUnavailable)
        torch.set_num_threads(threads)
        checkpoint = Checkpoint(model, language)
        self._features = checkpoint.features
        self._geometry = checkpoint.geometry
        self._network, loading = transformers.AutoModelForCTC.from_pretrained(
            model.path, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        self._network.eval()
        if any(key.startswith("lm_head.") for key in loading["missing_keys"]):
            raise ModelUnavailable(f"the weights of {model.name} have no CTC head: not fine-tuned")
        alphabet = checkpoint.alphabet()
        padding: list[str | None] = [None] * self._network.lm_head.out_features
        self._alphabet = Alphabet(alphabet.tokens + padding, alphabet.delimiter)

    def transcribe(self, sounds: Sequence[Sound]) -> list[WindowResult]:
        """See :class:`transcribed.speech.Recognizer`."""
        return [
            heard(self._alphabet, *self._best(s.samples), s.span, self._geometry.stride)
            for s in sounds
        ]

    def _best(self, samples: Samples) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Each frame's most probable output and its probability, both of shape (frames,)."""
        if not len(samples):
            return numpy.empty(0, numpy.int64), numpy.empty(0, numpy.float32)
        # One window at a time needs no padding and so no attention mask, whether or not the
        # checkpoint was trained with one (return_attention_mask): all of it would be ones.
        inputs = self._features(
            samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=False
        ).input_values
        short = self._geometry.field - inputs.shape[-1]
        if short > 0:
            inputs = torch.nn.functional.pad(inputs, (0, short))
        with torch.inference_mode():
            best = self._network(inputs).logits[0].float().softmax(-1).max(-1)
        return best.indices.numpy(), best.values.numpy()
