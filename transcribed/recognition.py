"""What a recognizer is and what it answers, as plain data; and putting windows back together.

Parent and children exchange these as JSON (:func:`encode`, :func:`decode`), so nothing here knows
torch, numpy or a reactor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from transcribed.errors import RecognitionFailed

DTYPES = ("auto", "float32", "bfloat16", "int8")
"""What a CTC model may be asked to compute in; ``auto`` is what the machine does fast."""

Probability = Annotated[float, Meta(ge=0, le=1)]


class Model(msgspec.Struct, frozen=True):
    """A model that was found and can be loaded.

    :ivar name: as asked for: a Hub name, a directory, or ``embedded``.
    :ivar path: the directory with its files.
    :ivar kind: ``wav2vec2`` (converted for the network of our own), ``ctc`` (any other ``*ForCTC``
        checkpoint, which runs on transformers) or ``whisper`` (CTranslate2).
    :ivar digest: names these very weights, so that results of other ones are not mixed in.
    :ivar size: bytes of weights that each worker holds for itself.
    :ivar languages: the languages it can be asked for; None when its files do not say.
    :ivar core: seconds of audio that one window is asked for.
    :ivar context: seconds of audio that a window sees before and after its core.
    :ivar warning: what an operator and a client must know, e.g. that this is a fallback.
    :ivar device: where it is computed.
    :ivar converted: of the kind ``wav2vec2``, the file that workers map.
    :ivar shared: bytes of weights that all workers hold together, mapped from one file.
    :ivar batch: seconds of audio up to which short windows are done together faster than one by
        one; 0 where they are not.
    """

    name: str
    path: str
    kind: Literal["wav2vec2", "ctc", "whisper"]
    digest: str
    size: int
    languages: tuple[str, ...] | None
    core: int
    context: int
    warning: str | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    converted: str = ""
    shared: int = 0
    batch: float = 0.0

    @property
    def mark(self) -> str:
        """Names what a window's result depends on: the weights, and how recordings are cut."""
        return f"{self.digest}/{self.core}/{self.context}"

    @property
    def longest(self) -> int:
        """Seconds of audio in the longest window, and of the longest recording that is one."""
        return self.core + 2 * self.context


class Window(msgspec.Struct, frozen=True):
    """A piece of a recording, in frames at the recording's own rate.

    The recognizer hears ``start <= frame < stop`` and answers for ``core_start <= frame
    < core_stop``.
    """

    position: int
    start: int
    stop: int
    core_start: int
    core_stop: int


class SpooledAudio(msgspec.Struct, frozen=True):
    """Audio on disk: interleaved little-endian signed 16-bit samples.

    :ivar path: the file.
    :ivar rate: frames a second, Hz.
    :ivar channels: samples a frame.
    """

    path: str
    rate: int
    channels: int


class Piece(msgspec.Struct, frozen=True):
    """A window of a recording on disk, as a worker is asked for it."""

    audio: SpooledAudio
    window: Window
    language: str

    @property
    def seconds(self) -> float:
        """How much audio is in it."""
        return (self.window.stop - self.window.start) / self.audio.rate


class Run(msgspec.Struct, frozen=True, array_like=True):
    """One CTC token held for some consecutive frames (blanks are left out).

    :ivar token: the characters it stands for.
    :ivar start: its first frame, counted in strides from the start of the recording.
    :ivar frames: for how many frames it was the most probable token.
    :ivar confidence: its mean probability over them, 0 to 1.
    """

    token: str
    start: Annotated[int, Meta(ge=0)]
    frames: Annotated[int, Meta(ge=1)]
    confidence: Probability


class Word(msgspec.Struct, frozen=True):
    """A word with its times in seconds from the start of the recording, confidence 0 to 1."""

    word: str
    start: Annotated[float, Meta(ge=0)]
    end: Annotated[float, Meta(ge=0)]
    confidence: Probability


class CTCResult(msgspec.Struct, frozen=True, tag="ctc"):
    """What a CTC recognizer heard in the core of a window.

    :ivar stride: seconds between two frames.
    :ivar delimiter: the token between words.
    """

    stride: Annotated[float, Meta(gt=0)]
    delimiter: str
    runs: list[Run]


class WordsResult(msgspec.Struct, frozen=True, tag="words"):
    """What a recognizer that answers in words heard in the core of a window."""

    words: list[Word]


WindowResult = CTCResult | WordsResult


class StoredWindow(msgspec.Struct, frozen=True):
    """A window's result on disk; `model` is the mark of the model that made it."""

    model: str
    position: int
    result: WindowResult


class Transcription(msgspec.Struct, frozen=True):
    """The text of a whole recording."""

    text: str
    words: list[Word]


T = TypeVar("T")


def encode(value: msgspec.Struct) -> bytes:
    """`value` as one line of JSON."""
    return msgspec.json.encode(value)


def decode(kind: type[T], data: bytes) -> T:
    """The value that `data` stands for; raises :exc:`RecognitionFailed` when it is not one."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise RecognitionFailed("the worker's answer makes no sense") from e


def encode_pieces(pieces: Sequence[Piece]) -> bytes:
    """A batch of windows as JSON."""
    return msgspec.json.encode(pieces)


def decode_pieces(data: bytes) -> list[Piece]:
    """The batch that `data` stands for; raises :exc:`RecognitionFailed` when it is not one."""
    return decode(list[Piece], data)


def encode_results(results: Sequence[WindowResult]) -> bytes:
    """A batch's results as JSON."""
    return msgspec.json.encode(results)


def decode_results(data: bytes) -> list[WindowResult]:
    """A batch's results; raises :exc:`RecognitionFailed` when they are none."""
    return decode(list[WindowResult], data)


def cut(frames: int, rate: int, core: int, context: int) -> list[Window]:
    """Cut a recording of `frames` frames at `rate` Hz into windows.

    All cuts fall on whole seconds, so that the windows' CTC frames lie on one grid at any rate. A
    recording that fits into ``core + 2 * context`` seconds is one window; of a longer one the first
    and last windows answer for up to ``core + context`` seconds, so that every window is about as
    long and has `context` seconds on each side where the recording goes on.

    More frames add windows and change the last one, but none of those before it: these can be
    transcribed while the rest is still coming in.
    """
    longest = (core + 2 * context) * rate
    cuts = [0]
    while frames - max(0, cuts[-1] - context * rate) > longest:
        cuts.append(cuts[-1] + (core if cuts[-1] else core + context) * rate)
    cuts.append(frames)
    return [
        Window(
            position,
            max(0, start - context * rate),
            min(frames, stop + context * rate),
            start,
            stop,
        )
        for position, (start, stop) in enumerate(pairwise(cuts))
    ]


def stitch(results: Sequence[WindowResult]) -> Transcription:
    """The whole recording's text from its windows' results, in order.

    A token that is held across a cut is one token, as it would be in an uncut recording.
    """
    words: list[Word] = []
    pending: list[CTCResult] = []
    for result in results:
        if isinstance(result, CTCResult):
            pending.append(result)
        else:
            words += result.words
    if pending:
        runs = _merge(run for result in pending for run in result.runs)
        words += _words(runs, pending[0].stride, pending[0].delimiter)
    return Transcription(" ".join(w.word for w in words), words)


def _merge(runs: Iterable[Run]) -> list[Run]:
    merged: list[Run] = []
    for run in runs:
        if merged and merged[-1].token == run.token:
            before = merged[-1]
            if before.start + before.frames == run.start:
                frames = before.frames + run.frames
                total = before.confidence * before.frames + run.confidence * run.frames
                merged[-1] = Run(run.token, before.start, frames, total / frames)
                continue
        merged.append(run)
    return merged


def _words(runs: Iterable[Run], stride: float, delimiter: str) -> list[Word]:
    words: list[Word] = []
    letters: list[Run] = []

    def close() -> None:
        if letters:
            frames = sum(run.frames for run in letters)
            words.append(
                Word(
                    "".join(run.token for run in letters),
                    round(letters[0].start * stride, 3),
                    round((letters[-1].start + letters[-1].frames) * stride, 3),
                    round(sum(run.confidence * run.frames for run in letters) / frames, 4),
                )
            )
            letters.clear()

    for run in runs:
        if run.token == delimiter:
            close()
        else:
            letters.append(run)
    close()
    return words
