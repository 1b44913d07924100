"""Speech recognition, in the worker processes only: finding, loading and running a model.

Importing this package imports no machine learning library; :func:`load` imports the one it needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from transcribed.recognition import Model, Window, WindowResult

if TYPE_CHECKING:
    from transcribed.speech.audio import Samples


@dataclass(frozen=True)
class Span:
    """Where a window's samples lie in the recording, in seconds, whatever the recording's rate.

    :ivar start: where the samples start: a whole second.
    :ivar core_start: the first second that the window answers for.
    :ivar core_stop: the end of what it answers for; infinite in the last window, which keeps all
        that it hears.
    """

    start: int
    core_start: int
    core_stop: float

    @classmethod
    def of(cls, window: Window, rate: int) -> Span:
        """The span of `window`, which counts frames at `rate` Hz."""
        # Only the last window has no context after its core: see transcribed.recognition.cut.
        last = window.core_stop == window.stop
        return cls(
            window.start // rate,
            window.core_start // rate,
            math.inf if last else window.core_stop // rate,
        )

    def answers_for(self, seconds: float) -> bool:
        """Whether `seconds` after the start of the recording is in the window's core."""
        return self.core_start <= seconds < self.core_stop


@dataclass(frozen=True)
class Sound:
    """A window as a recognizer hears it.

    :ivar samples: float32, shape (samples,), 16 kHz, -1 to 1: the core and its context.
    :ivar span: where they lie in the recording.
    :ivar language: as the model names it; empty for the model's own choice.
    """

    samples: Samples
    span: Span
    language: str


class Recognizer(Protocol):
    """A loaded model. Used from one thread at a time.

    :ivar precision: what it computes in, e.g. ``float32``.
    """

    precision: str

    def transcribe(self, sounds: Sequence[Sound]) -> list[WindowResult]:
        """What is said in the core of each window, as if it were alone.

        :param sounds: windows that are all in one language.
        :raises RecognitionFailed: when the model does not have the language.
        """


def load(model: Model, threads: int, language: str) -> Recognizer:
    """Load a resolved model, to compute in `threads` threads.

    :param language: what it will mostly be asked for; empty for the model's own choice.
    :raises ModelUnavailable: when it cannot be loaded or does not have the language.
    """
    if model.kind == "whisper":
        from transcribed.speech.whisper import WhisperRecognizer

        return WhisperRecognizer(model, threads, language)
    if model.kind == "wav2vec2":
        from transcribed.speech.native import NativeRecognizer

        return NativeRecognizer(model, threads, language)
    from transcribed.speech.ctc import CTCRecognizer

    return CTCRecognizer(model, threads, language)


def check_language(model: Model, language: str, error: type[Exception]) -> None:
    """Raise `error` when the model lists its languages, and `language` is none of them."""
    if language and model.languages is not None and language not in model.languages:
        raise error(f"{model.name} does not have the language {language!r}")
