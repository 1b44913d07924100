"""Whisper recognition with faster-whisper on CTranslate2. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from faster_whisper import WhisperModel

from transcribed.errors import ModelUnavailable, RecognitionFailed
from transcribed.recognition import Model, WindowResult, Word, WordsResult
from transcribed.speech import Sound, Span, check_language
from transcribed.speech.audio import Samples


class WhisperRecognizer:
    """A Whisper checkpoint in CTranslate2 format. Implements ``Recognizer``."""

    precision = "int8"

    def __init__(self, model: Model, threads: int, language: str) -> None:
        """See :func:`transcribed.speech.load`."""
        check_language(model, language, ModelUnavailable)
        self._model = model
        self._default = language
        self._whisper = WhisperModel(
            model.path,
            device="cpu",
            compute_type="int8",
            cpu_threads=threads,
            local_files_only=True,
        )

    def transcribe(self, sounds: Sequence[Sound]) -> list[WindowResult]:
        """See :class:`transcribed.speech.Recognizer`."""
        return [self._transcribe(s.samples, s.span, s.language) for s in sounds]

    def _transcribe(self, samples: Samples, span: Span, language: str) -> WordsResult:
        check_language(self._model, language, RecognitionFailed)
        words: list[Word] = []
        if not len(samples):
            return WordsResult(words)
        segments, _ = self._whisper.transcribe(
            samples,
            language=language or self._default or None,
            word_timestamps=True,
            condition_on_previous_text=False,
            # Whisper makes up words in silence; what the detector takes for none it never hears.
            vad_filter=True,
            # Of the six temperatures that it tries on audio it is unsure of, the first three: noise
            # may take three times as long as speech, not six.
            temperature=(0.0, 0.2, 0.4),
        )
        for segment in segments:
            for word in segment.words or ():
                start, end = span.start + float(word.start), span.start + float(word.end)
                text = word.word.strip()
                if text and span.answers_for((start + end) / 2):
                    confidence = min(1.0, max(0.0, float(word.probability)))
                    words.append(Word(text, round(start, 3), round(end, 3), round(confidence, 4)))
        return WordsResult(words)
