"""The child process: answers the commands of :mod:`transcribed.commands` over AMP.

All that blocks runs in one thread of its own, so that the reactor still answers a ping, and sees
its parent die, while a window is being transcribed: ampoule's child then ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TypeVar, cast

from ampoule.child import AMPChild
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.protocols.amp import MAX_VALUE_LENGTH
from twisted.python.threadpool import ThreadPool

from transcribed.commands import LoadModel, ResolveModel, TranscribeWindows
from transcribed.errors import ModelUnavailable, RecognitionFailed
from transcribed.recognition import Model, decode, decode_pieces, encode, encode_results
from transcribed.speech import Recognizer, Sound, Span, load
from transcribed.tidying import Tidying

LONGEST_REASON = 500
"""Characters of an error's reason that go to the parent: AMP ends on values over 65,535 bytes."""

NICENESS = 5
"""By so much a worker is less urgent than the daemon, see nice(2)."""

T = TypeVar("T")


class Worker(AMPChild):  # type: ignore[misc]
    """One worker: resolves a model, or loads one and transcribes window after window.

    No responder lets through anything but the errors that its command declares: on any other, AMP
    would end the connection, and with it the process.
    """

    _log = Logger()

    def __init__(self) -> None:
        super().__init__()
        # When memory runs out, the kernel is to end a worker, which is started again, and not the
        # daemon. Anybody may raise this of a process of theirs; where it cannot be, so be it.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("500")
        # The daemon answers clients in moments; a window takes seconds, and can wait for that.
        # Where a sandbox does not let it, it is as urgent as the daemon.
        with contextlib.suppress(OSError):
            os.nice(NICENESS)
        # Ctrl-C in a terminal reaches the whole group; the parent decides when its workers end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._thread = ThreadPool(1, 1, "inference")
        # A daemon, so that the end of the process does not wait for the end of a window.
        self._thread.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]
        self._thread.start()
        # Imported late: the bootstrap installs the reactor.
        from twisted.internet import reactor

        # Between two windows: what is given back while one is in work is wanted again at once.
        self._tidying = Tidying(cast(IReactorTime, reactor), self._thread.callInThread)
        self._recognizer: Recognizer | None = None
        self._fragile = False

    @ResolveModel.responder
    def resolveModel(self, asked: str, cache: str, dtype: str) -> Deferred[dict[str, bytes]]:
        """See :class:`ResolveModel`."""

        def work() -> dict[str, bytes]:
            from transcribed.speech.models import resolve

            return {"model": _fitting(encode(resolve(asked, cache, dtype)))}

        return self._run(work, ModelUnavailable, "the model cannot be resolved")

    @LoadModel.responder
    def loadModel(self, model: bytes, threads: int, language: str) -> Deferred[dict[str, str]]:
        """See :class:`LoadModel`."""

        def work() -> dict[str, str]:
            found = decode(Model, model)
            self._recognizer = load(found, threads, language)
            # After some errors nothing works any more in a process that uses CUDA.
            self._fragile = found.device == "cuda"
            return {"precision": self._recognizer.precision}

        return self._run(work, ModelUnavailable, "the model cannot be loaded")

    @TranscribeWindows.responder
    def transcribeWindows(self, pieces: bytes) -> Deferred[dict[str, bytes]]:
        """See :class:`TranscribeWindows`."""

        def work() -> dict[str, bytes]:
            # Not at the top: a child that only resolves a model needs neither numpy nor soxr.
            from transcribed.speech.audio import read

            if self._recognizer is None:
                raise RecognitionFailed("this worker has no model loaded")
            sounds = []
            for piece in decode_pieces(pieces):
                audio, window = piece.audio, piece.window
                samples = read(audio.path, audio.rate, audio.channels, window.start, window.stop)
                sounds.append(Sound(samples, Span.of(window, audio.rate), piece.language))
            return {"results": _fitting(encode_results(self._recognizer.transcribe(sounds)))}

        done = self._run(work, RecognitionFailed, "the window cannot be transcribed")
        self._tidying.used()
        return done

    def _run(self, work: Callable[[], T], declared: type[Exception], what: str) -> Deferred[T]:
        """`work` in the inference thread; it fails with `declared` or not at all."""
        from twisted.internet import reactor

        def guarded() -> T:
            try:
                return work()
            except (ModelUnavailable, RecognitionFailed) as e:
                raise declared(str(e)[:LONGEST_REASON]) from None
            except BaseException as e:
                name = type(e).__name__
                # Where, but not the message: a library's may quote the text or the samples.
                trace = "".join(traceback.format_tb(e.__traceback__))
                if declared is ModelUnavailable:
                    trace += str(e)
                self._log.error("{what}: {name}\n{trace}", what=what, name=name, trace=trace)
                if self._fragile:
                    os._exit(1)
                raise declared(f"{what}: {name}") from None

        return deferToThreadPool(reactor, self._thread, guarded)  # type: ignore[arg-type]


def _fitting(answer: bytes) -> bytes:
    """`answer`; raises :exc:`RecognitionFailed` if it is longer than AMP can send."""
    if len(answer) > MAX_VALUE_LENGTH:
        raise RecognitionFailed("the worker's answer is too long to send")
    return answer
