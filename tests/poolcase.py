"""A pool over fake children, for the tests of the pool and of its workers."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.fakechild import FakeChild, FakeStarter
from transcribed.commands import LoadModel, ResolveModel, TranscribeWindows
from transcribed.errors import RecognitionFailed
from transcribed.pool import RecognizerPool
from transcribed.recognition import (
    CTCResult,
    Model,
    Piece,
    Run,
    SpooledAudio,
    Window,
    WindowResult,
    encode,
    encode_results,
)

MODEL = Model("some/model", "/m", "ctc", "abc", 1_000_000, ("sv",), 20, 3, "only a test")


def piece(path: str = "/spool/x", seconds: int = 10) -> Piece:
    frames = seconds * 16000
    return Piece(SpooledAudio(path, 16000, 1), Window(0, 0, frames, 0, frames), "sv")


PIECE = piece()
RESULT = CTCResult(0.02, "|", [Run("a", 1, 2, 0.5)])


class PoolTestCase(SynchronousTestCase):
    """A pool over fake children; each test must leave no delayed call behind."""

    workers: int | None = 2
    threads: int | None = 1

    def setUp(self) -> None:
        self.clock = Clock()
        self.starter = FakeStarter()
        self.freed = 0
        self.pool = RecognizerPool(
            "auto",
            "/cache",
            "auto",
            self.workers,
            self.threads,
            "sv",
            cast(Any, self.clock),
            self.starter,
            jitter=lambda: 1.0,
            resources=lambda: (4, None),
        )
        self.pool.whenFree = self.whenFree
        self.results: list[Deferred[list[WindowResult]]] = []
        self.addCleanup(self.stopAll)

    def whenFree(self) -> None:
        self.freed += 1

    def stopAll(self) -> None:
        stopped = self.pool.stop()
        self.starter.flush()
        while not stopped.called and self.clock.seconds() < 1e6:
            self.pass_(0.25)
        self.successResultOf(stopped)
        for result in self.results:
            result.addErrback(lambda failure: None)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual([child.name for child in self.starter.children if child.alive], [])

    def pass_(self, seconds: float) -> None:
        """Let time pass, in steps short enough for every answer to arrive in time."""
        self.starter.flush()
        while seconds > 0:
            self.clock.advance(min(0.25, seconds))
            self.starter.flush()
            seconds -= 0.25

    def child(self, name: str = "worker 1") -> FakeChild:
        return self.starter.alive(name)

    def started(self, name: str = "worker 1") -> int:
        return sum(child.name == name for child in self.starter.children)

    def resolve(self) -> None:
        self.pool.start()
        self.starter.flush()
        self.child("resolver").answer(ResolveModel, model=encode(MODEL))
        self.starter.flush()

    def load(self, *names: str) -> None:
        for name in names:
            self.child(name).answer(LoadModel, precision="float32")
        self.starter.flush()

    def ready(self) -> None:
        self.resolve()
        self.load(*[f"worker {n + 1}" for n in range(self.pool.status().workers)])

    def transcribe(self, *pieces: Piece) -> Deferred[list[WindowResult]]:
        result = self.pool.transcribe(pieces or [PIECE])
        self.results.append(result)
        self.starter.flush()
        return result

    def answer(self, name: str = "worker 1") -> None:
        self.child(name).answer(TranscribeWindows, results=encode_results([RESULT]))
        self.starter.flush()

    def failed(self, result: Deferred[list[WindowResult]]) -> str:
        return str(self.failureResultOf(result, RecognitionFailed).value)
