"""The engine without a daemon: processes that load a model and transcribe, back to back.

What the daemon is measured against. Run as ``python -m benchmarks.bare`` this is one such process:
it answers one line of JSON with one line of JSON.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from transcribed.children import child_environment
from transcribed.recognition import Model, Piece, WindowResult, Word, WordsResult, encode_pieces

T = TypeVar("T")

ROOT = Path(__file__).parent.parent

DIRECT = {
    "word_timestamps": True,
    "condition_on_previous_text": False,
    "vad_filter": True,
    "temperature": (0.0, 0.2, 0.4),
}
"""What the daemon asks of faster-whisper (:mod:`transcribed.speech.whisper`), too."""


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """What a process is to do; one of the fields is given, or `load` with all after it.

    :ivar resolve: a model as it is asked for, where to unpack it, what to compute in.
    :ivar load: a model to load; ``direct`` loads a Whisper with faster-whisper itself.
    :ivar prepare: windows whose samples to read.
    :ivar transcribe: the number of a window to transcribe.
    :ivar certain: the number of a window of which to say whether :meth:`Direct.certain`.
    """

    resolve: tuple[str, str, str] | None = None
    load: Model | None = None
    threads: int = 1
    language: str = "sv"
    direct: bool = False
    prepare: list[Piece] | None = None
    transcribe: int | None = None
    certain: int | None = None


async def together(jobs: Iterable[Deferred[T]]) -> list[T]:
    """What all `jobs` give. Raises what the first one to fail raises."""
    try:
        return await gatherResults(list(jobs), consumeErrors=True)
    except FirstError as e:
        raise cast(Exception, e.subFailure.value) from None


class BareProcess(ProcessProtocol):
    """One process, from the parent's side."""

    transport: Any

    def __init__(self, reactor: Any, threads: int) -> None:
        self._lines = b""
        self._log = b""
        self._answer: Deferred[bytes] | None = None
        self.ended: Deferred[None] = Deferred()
        reactor.spawnProcess(
            self,
            sys.executable,
            [sys.executable, "-m", "benchmarks.bare"],
            env=child_environment(threads, os.environ)
            | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        )

    async def ask(self, **order: Any) -> bytes:
        """Give it an order, one at a time; its answer."""
        self._answer = Deferred()
        self.transport.write(msgspec.json.encode(order) + b"\n")
        return await self._answer

    def outReceived(self, data: bytes) -> None:
        """The answer, or a part of it."""
        self._lines += data
        if self._lines.endswith(b"\n"):
            line, self._lines = self._lines, b""
            answer, self._answer = self._answer, None
            assert answer is not None
            answer.callback(line)

    def errReceived(self, data: bytes) -> None:
        """Warnings, and the traceback where it fails."""
        self._log = (self._log + data)[-4000:]

    def processEnded(self, reason: Failure) -> None:
        """It is gone."""
        if self._answer is not None:
            log = self._log.decode(errors="replace")
            self._answer.errback(RuntimeError(f"the bare engine has ended:\n{log}"))
        self.ended.callback(None)

    def stop(self) -> Deferred[None]:
        """End it; fires when it is gone."""
        self.transport.loseConnection()
        return self.ended


class BareEngine:
    """Some processes with the same model, which share the work.

    :param clock: for the time that it takes; a reactor.
    """

    def __init__(self, reactor: Any, processes: int, threads: int) -> None:
        self._clock = reactor
        self._threads = threads
        self._processes = [BareProcess(reactor, threads) for _ in range(processes)]

    async def resolve(self, asked: str, cache: str, dtype: str) -> Model:
        """Find a model, as a worker of the daemon does."""
        answer = await self._processes[0].ask(resolve=(asked, cache, dtype))
        return msgspec.json.decode(answer, type=Model)

    async def load(self, model: Model, language: str, direct: bool = False) -> None:
        """Load the model in each process."""
        await self._each(load=model, language=language, direct=direct)

    async def prepare(self, pieces: Sequence[Piece]) -> None:
        """Read the samples of all windows in each process, so that no reading is measured."""
        await self._each(prepare=msgspec.Raw(encode_pieces(pieces)))

    async def _each(self, **order: Any) -> None:
        await together(
            Deferred.fromCoroutine(process.ask(threads=self._threads, **order))
            for process in self._processes
        )

    async def run(self, windows: Iterable[int]) -> tuple[float, list[WindowResult]]:
        """Transcribe prepared windows, each by whichever process is idle: seconds and results."""
        begun = self._clock.seconds()
        answers = await self._share("transcribe", windows)
        took = self._clock.seconds() - begun
        return took, [msgspec.json.decode(answer, type=WindowResult) for answer in answers]

    async def certain(self, windows: Sequence[int]) -> list[int]:
        """Those of prepared windows that are :meth:`Direct.certain`."""
        answers = await self._share("certain", windows)
        return [w for w, a in zip(windows, answers, strict=True) if msgspec.json.decode(a)]

    async def _share(self, order: str, windows: Iterable[int]) -> list[bytes]:
        """Each window's answer to `order`."""
        numbers = list(windows)
        answers: dict[int, bytes] = {}
        left = iter(enumerate(numbers))

        async def work(process: BareProcess) -> None:
            for place, number in left:
                answers[place] = await process.ask(**{order: number})

        await together(Deferred.fromCoroutine(work(process)) for process in self._processes)
        return [answers[i] for i in range(len(numbers))]

    async def stop(self) -> None:
        """End all processes."""
        await together(process.stop() for process in self._processes)


class Direct:
    """A Whisper model as users of faster-whisper run it."""

    def __init__(self, model: Model, threads: int, language: str) -> None:
        from faster_whisper import WhisperModel

        self._language = language
        self._whisper = WhisperModel(
            model.path,
            device="cpu",
            compute_type="int8",
            cpu_threads=threads,
            local_files_only=True,
        )

    def transcribe(self, sounds: Sequence[Any]) -> list[WordsResult]:
        """What is said in each."""
        return [
            WordsResult(
                [
                    Word(w.word.strip(), *map(float, (w.start, w.end, w.probability)))
                    for segment in self._segments(sound)
                    for w in segment.words or ()
                    if w.word.strip()
                ]
            )
            for sound in sounds
        ]

    def certain(self, sound: Any) -> bool:
        """Whether it is decoded at the first try.

        What Whisper is unsure of is decoded again by drawing lots, up to ten times over: neither
        the text nor the time that it takes are then the same twice.
        """
        return all(segment.temperature == 0 for segment in self._segments(sound))

    def _segments(self, sound: Any) -> Iterable[Any]:
        segments: Iterable[Any]
        segments, _ = self._whisper.transcribe(sound.samples, language=self._language, **DIRECT)
        return segments


def serve() -> None:
    """Be one of the processes: answer orders until there are no more."""
    from transcribed.speech import load
    from transcribed.speech.models import resolve

    answers = os.fdopen(os.dup(1), "wb")
    # What libraries print must not get between the answers.
    os.dup2(2, 1)
    recognizer: Any = None
    sounds: list[Any] = []
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=Order)
        answer: Any = None
        if order.resolve is not None:
            answer = resolve(*order.resolve)
        elif order.load is not None:
            make: Callable[..., Any] = Direct if order.direct else load
            recognizer = make(order.load, order.threads, order.language)
        elif order.prepare is not None:
            sounds = [_sound(piece) for piece in order.prepare]
        elif order.transcribe is not None:
            [answer] = recognizer.transcribe([sounds[order.transcribe]])
        elif order.certain is not None:
            answer = recognizer.certain(sounds[order.certain])
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()


def _sound(piece: Piece) -> Any:
    from transcribed.speech import Sound, Span
    from transcribed.speech.audio import read

    audio, window = piece.audio, piece.window
    samples = read(audio.path, audio.rate, audio.channels, window.start, window.stop)
    return Sound(samples, Span.of(window, audio.rate), piece.language)


if __name__ == "__main__":
    serve()
