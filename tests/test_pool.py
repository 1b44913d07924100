"""The pool and its workers: every life of a child, in memory; at the end a few real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
from ampoule.commands import Echo, Shutdown
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.fakechild import FakeChild, FakeStarter
from transcribed.children import LONGEST_LINE, LineLog, child_environment, process_starter
from transcribed.commands import LoadModel, ResolveModel, TranscribeWindows
from transcribed.errors import ModelUnavailable, RecognitionFailed
from transcribed.interfaces import IRecognizerPool
from transcribed.pool import RecognizerPool
from transcribed.recognition import (
    CTCResult,
    Model,
    Piece,
    Run,
    SpooledAudio,
    Window,
    WindowResult,
    WordsResult,
    decode,
    decode_pieces,
    encode,
    encode_results,
)
from transcribed.work import Backoff, Times

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


class ResolvingTests(PoolTestCase):
    def test_interface(self) -> None:
        pool: IRecognizerPool = self.pool
        self.assertEqual(pool.idle, 0)

    def test_before(self) -> None:
        status = self.pool.status()
        self.assertEqual((status.model, status.workers, status.ready), ("auto", 0, 0))
        self.assertIsNone(status.problem)
        self.assertIn("no worker", self.failed(self.transcribe()))

    def test_resolved(self) -> None:
        """The resolver is asked, then dismissed; the workers start, and whoever waits is told."""
        self.pool.start()
        self.starter.flush()
        resolver = self.child("resolver")
        self.assertEqual(
            resolver.asked, [(ResolveModel, {"asked": "auto", "cache": "/cache", "dtype": "auto"})]
        )
        self.assertIsNone(self.pool.model)
        self.clock.advance(3600)  # a slow download
        self.assertTrue(resolver.alive)
        resolver.answer(ResolveModel, model=encode(MODEL))
        self.starter.flush()
        self.assertFalse(resolver.alive)
        self.assertEqual(resolver.signals, [])
        self.assertEqual(self.pool.model, MODEL)
        self.assertEqual(self.freed, 1)
        status = self.pool.status()
        self.assertEqual(
            (status.model, status.workers, status.threads, status.ready, status.warning),
            ("some/model", 2, 1, 0, "only a test"),
        )
        self.assertIsNone(status.problem)
        [(command, arguments)] = self.child("worker 2").asked
        self.assertIs(command, LoadModel)
        self.assertEqual(decode(Model, arguments["model"]), MODEL)
        self.assertEqual((arguments["threads"], arguments["language"]), (1, "sv"))

    def test_unavailable(self) -> None:
        """One clear error, however often it fails the same way; tried until it succeeds."""
        with capturedLogs() as logged:
            self.pool.start()
            for wait in (0.5, 1, 2, 4, 8, 16, 32, 60, 60):
                self.starter.flush()
                self.child("resolver").refuse(ResolveModel, ModelUnavailable("out of reach"))
                self.starter.flush()
                status = self.pool.status()
                self.assertEqual(status.problem, "resolver cannot load the model: out of reach")
                before = self.started("resolver")
                self.pass_(wait - 0.25)
                self.assertEqual(self.started("resolver"), before)
                self.pass_(0.25)
                self.assertEqual(self.started("resolver"), before + 1)
        errors = [event for event in logged if event["log_level"] == LogLevel.error]
        self.assertEqual(len(errors), 1)
        self.child("resolver").answer(ResolveModel, model=encode(MODEL))
        self.starter.flush()
        self.assertEqual(self.pool.model, MODEL)
        self.assertIsNone(self.pool.status().problem)

    def test_dies(self) -> None:
        self.pool.start()
        self.child("resolver").die(signal=11)
        self.assertEqual(self.pool.status().problem, "resolver died of signal 11")
        self.pass_(0.5)
        self.child("resolver").die()
        self.assertEqual(self.pool.status().problem, "resolver went away")

    def test_rubbish(self) -> None:
        self.pool.start()
        self.starter.flush()
        self.child("resolver").answer(ResolveModel, model=b"{}")
        self.starter.flush()
        self.assertIn("rubbish", self.pool.status().problem or "")
        self.assertEqual(self.starter.children[0].signals, ["KILL"])
        self.assertFalse(self.starter.children[0].alive)

    def test_cannotStart(self) -> None:
        """A process that cannot even be started is tried again like one that dies."""
        self.starter.broken = 2
        self.pool.start()
        self.assertIn("no more processes", self.pool.status().problem or "")
        self.pass_(0.5 + 1)
        self.assertEqual(self.started("resolver"), 1)

    def test_stopMeanwhile(self) -> None:
        self.pool.start()
        self.starter.flush()
        resolver = self.child("resolver")
        stopped = self.pool.stop()
        resolver.answer(ResolveModel, model=encode(MODEL))
        self.starter.flush()
        self.successResultOf(stopped)
        self.assertIsNone(self.pool.model)
        self.assertEqual(len(self.starter.children), 1)


class LoadingTests(PoolTestCase):
    def test_ready(self) -> None:
        self.resolve()
        self.load("worker 2")
        status = self.pool.status()
        self.assertEqual((status.ready, status.precision, self.pool.idle), (1, "float32", 1))
        self.assertEqual(self.freed, 2)

    def test_unavailable(self) -> None:
        """Each distinct reason is logged once, the workers' own names apart; then it succeeds."""
        self.resolve()
        with capturedLogs() as logged:
            for reason in ("no weights", "no weights", "no memory"):
                for name in ("worker 1", "worker 2"):
                    self.child(name).refuse(LoadModel, ModelUnavailable(reason))
                self.pass_(2)
        errors = [event for event in logged if event["log_level"] == LogLevel.error]
        self.assertEqual(len(errors), 2)
        self.assertIn("no memory", self.pool.status().problem or "")
        self.load("worker 1")
        self.assertIsNone(self.pool.status().problem)

    def test_dies(self) -> None:
        self.resolve()
        self.child().die(code=3)
        self.assertEqual(self.pool.status().problem, "worker 1 died (3)")
        self.pass_(0.5)
        self.load("worker 1")
        self.assertEqual(self.pool.idle, 1)

    def test_hangs(self) -> None:
        self.resolve()
        child = self.child()
        self.load("worker 2")
        self.pass_(599.75)
        self.assertTrue(child.alive)
        self.pass_(0.25)
        self.assertEqual(child.signals, ["KILL"])
        self.pass_(0.5)
        self.assertEqual(self.started(), 2)
        self.assertEqual(self.started("worker 2"), 1)

    def test_hasMorePatienceThanWork(self) -> None:
        """Importing torch may well take a child longer than a ping otherwise allows."""
        self.resolve()
        child = self.child()
        child.hushed = True
        self.pass_(15 + 119.75)
        self.assertTrue(child.alive)
        self.pass_(0.25)
        self.assertEqual(child.signals, ["KILL"])

    def test_aStoppedResolverIsReplaced(self) -> None:
        self.pool.start()
        child = self.child("resolver")
        child.hushed = True
        self.pass_(15 + 120)
        self.assertEqual(child.signals, ["KILL"])
        self.pass_(30)
        self.assertEqual(self.started("resolver"), 2)


class WorkingTests(PoolTestCase):
    def test_transcribes(self) -> None:
        self.ready()
        result = self.transcribe()
        self.assertEqual(self.pool.idle, 1)
        self.assertEqual(self.pool.status().ready, 2)
        command, arguments = self.child().asked[-1]
        self.assertIs(command, TranscribeWindows)
        self.assertEqual(decode_pieces(arguments["pieces"]), [PIECE])
        freed = self.freed
        self.answer()
        self.assertEqual(self.successResultOf(result), [RESULT])
        self.assertEqual((self.pool.idle, self.freed), (2, freed + 1))

    def test_bothKinds(self) -> None:
        self.ready()
        result = self.transcribe()
        self.child().answer(TranscribeWindows, results=encode_results([WordsResult([])]))
        self.starter.flush()
        self.assertEqual(self.successResultOf(result), [WordsResult([])])

    def test_allBusy(self) -> None:
        self.ready()
        first, second = self.transcribe(), self.transcribe()
        self.assertIn("no worker", self.failed(self.transcribe()))
        self.answer("worker 2")
        self.assertNoResult(first)
        self.successResultOf(second)

    def test_again(self) -> None:
        """Whoever is told of a free worker, or given a result, may hand out the next at once."""
        self.ready()
        done: list[object] = []

        def more(result: object = None) -> None:
            while self.pool.idle and len(self.results) < 12:
                window = self.pool.transcribe([PIECE])
                self.results.append(window)
                window.addCallback(done.append).addCallback(more)

        self.pool.whenFree = more
        more()
        for _ in range(6):
            self.starter.flush()
            self.answer("worker 1")
            self.answer("worker 2")
        self.assertEqual(len(done), 12)
        self.assertEqual(self.pool.idle, 2)

    def test_listenerFails(self) -> None:
        """A mistake of whoever listens breaks no worker."""

        def bad() -> None:
            raise ZeroDivisionError

        self.pool.whenFree = bad
        self.ready()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)
        self.assertEqual(self.pool.idle, 2)

    def test_cancelled(self) -> None:
        """A result that nobody wants any more is thrown away."""
        self.ready()
        result = self.transcribe()
        result.addErrback(lambda failure: None)
        result.cancel()
        self.answer()
        self.assertEqual(self.pool.idle, 2)

    def test_declaredError(self) -> None:
        """A child that says why it could not is as good as before."""
        self.ready()
        child = self.child()
        result = self.transcribe()
        child.refuse(TranscribeWindows, RecognitionFailed("no such file"))
        self.starter.flush()
        self.assertEqual(self.failed(result), "no such file")
        self.assertTrue(child.alive)
        self.assertEqual(self.pool.idle, 2)

    def test_diesBusy(self) -> None:
        """The window fails, the worker returns, and nobody else's window is touched."""
        self.ready()
        first, second = self.transcribe(), self.transcribe()
        self.child().die(signal=9)
        self.assertEqual(self.failed(first), "the worker died of signal 9")
        self.assertNoResult(second)
        self.assertEqual((self.pool.idle, self.pool.status().ready), (0, 1))
        self.pass_(0.5)
        self.load("worker 1")
        self.assertEqual((self.pool.idle, self.pool.status().ready), (1, 2))
        self.answer("worker 2")
        self.assertEqual(self.successResultOf(second), [RESULT])

    def test_exitsBusy(self) -> None:
        """Leaving without a word of farewell is no success, even with status 0."""
        self.ready()
        result = self.transcribe()
        self.child().die()
        self.assertEqual(self.failed(result), "the worker went away")

    def test_diesIdle(self) -> None:
        self.ready()
        self.child("worker 2").die(signal=15)
        self.assertEqual((self.pool.idle, self.pool.status().ready), (1, 1))
        self.assertIsNone(self.pool.status().problem)
        self.child("worker 1").die(signal=15)
        self.assertEqual((self.pool.idle, self.pool.status().ready), (0, 0))
        self.assertEqual(self.pool.status().problem, "worker 1 died of signal 15")
        self.pass_(0.5)
        self.load("worker 1", "worker 2")
        self.assertEqual(self.pool.idle, 2)

    def test_deadline(self) -> None:
        """60 s and 20 s for each of the ten seconds of audio, of all windows together."""
        self.ready()
        child = self.child()
        result, other = (
            self.transcribe(),
            self.transcribe(PIECE, piece(seconds=4), piece(seconds=6)),
        )
        self.pass_(259.75)
        self.assertNoResult(result)
        self.pass_(0.25)
        self.assertEqual(self.failed(result), "the worker hung: no result within 260 s")
        self.assertEqual(child.signals, ["KILL"])
        self.assertFalse(child.alive)
        self.pass_(199.75)
        self.assertNoResult(other)
        self.pass_(0.25)
        self.assertIn("460 s", self.failed(other))

    def test_undecodable(self) -> None:
        for rubbish in (b"", b"nonsense", b"\xff", b'[{"type":"ctc"}]', b"[" * 60000, b"17"):
            self.tearDownPool()
            self.ready()
            child = self.child()
            result = self.transcribe()
            child.answer(TranscribeWindows, results=rubbish)
            self.starter.flush()
            self.assertEqual(self.failed(result), "the worker answered with rubbish")
            self.assertEqual(child.signals, ["KILL"])
            self.pass_(0.5)
            self.load("worker 1")
            self.assertEqual(self.pool.idle, 2)

    def test_aBatch(self) -> None:
        self.ready()
        batch = self.transcribe(PIECE, piece("/spool/y", 3))
        self.assertEqual(self.pool.idle, 1)
        arguments = self.child().asked[-1][1]
        self.assertEqual(decode_pieces(arguments["pieces"]), [PIECE, piece("/spool/y", 3)])
        results: list[WindowResult] = [RESULT, WordsResult([])]
        self.child().answer(TranscribeWindows, results=encode_results(results))
        self.starter.flush()
        self.assertEqual(self.successResultOf(batch), results)
        self.assertEqual(self.pool.idle, 2)

    def test_anotherNumberOfResults(self) -> None:
        for results in ([], [RESULT], [RESULT] * 3):
            self.tearDownPool()
            self.ready()
            child = self.child()
            batch = self.transcribe(PIECE, PIECE)
            child.answer(TranscribeWindows, results=encode_results(results))
            self.starter.flush()
            self.assertEqual(self.failed(batch), "the worker answered with rubbish")
            self.assertEqual(child.signals, ["KILL"])

    def tearDownPool(self) -> None:
        self.stopAll()
        self.setUp()

    def test_undeclaredError(self) -> None:
        """The child's own AMP drops the connection over it, and the child with it."""
        self.ready()
        result = self.transcribe()
        self.child().refuse(TranscribeWindows, ZeroDivisionError("by sv"))
        self.starter.flush()
        message = self.failed(result)
        self.assertIn("error or rubbish", message)
        self.assertNotIn("by sv", message)
        self.flushLoggedErrors(ZeroDivisionError)
        self.pass_(0.5)
        self.assertEqual(self.started(), 2)

    def test_notAMP(self) -> None:
        """Bytes that are no AMP at all end the connection, and so the child."""
        self.ready()
        result = self.transcribe()
        self.child().send(b"Traceback (most recent call last):\n")
        self.starter.flush()
        self.failed(result)
        self.pass_(0.5)
        self.assertEqual(self.started(), 2)

    def test_killTakesTime(self) -> None:
        """The next child is not started before the last one is gone."""
        self.ready()
        child = self.child()
        self.transcribe()
        cast(Any, child).signal = child.signals.append
        child.answer(TranscribeWindows, results=b"")
        self.starter.flush()
        self.pass_(60)
        self.assertEqual((child.signals, self.started()), (["KILL"], 1))
        self.assertEqual((self.pool.idle, self.pool.status().ready), (1, 1))
        child.die(signal=9)
        self.pass_(0.5)
        self.assertEqual(self.started(), 2)


class PingTests(PoolTestCase):
    def test_answered(self) -> None:
        self.ready()
        self.pass_(15 * 4)
        self.assertEqual(self.child().count(Echo), 4)
        self.assertEqual(self.started(), 1)

    def test_idleHangs(self) -> None:
        self.ready()
        child = self.child()
        child.hushed = True
        self.pass_(44.75)
        self.assertTrue(child.alive)
        self.pass_(0.25)
        self.assertEqual(child.signals, ["KILL"])
        self.assertEqual(self.pool.idle, 1)
        self.pass_(0.5)
        self.load("worker 1")
        self.assertEqual(self.pool.idle, 2)

    def test_busyHangs(self) -> None:
        self.ready()
        child = self.child()
        result = self.transcribe()
        child.hushed = True
        self.pass_(45)
        self.assertEqual(self.failed(result), "the worker hung: no answer within 30 s")
        self.assertEqual(child.signals, ["KILL"])

    def test_acrossWork(self) -> None:
        """A ping that is not answered when the work begins or ends is not held against anyone."""
        self.ready()
        child = self.child()
        child.hushed = True
        self.pass_(16)
        child.hushed = False
        self.transcribe()
        self.pass_(31)
        self.answer()
        self.pass_(31)
        self.assertTrue(child.alive)


class BackoffTests(PoolTestCase):
    def test_waits(self) -> None:
        backoff = Backoff(0.5, 30, lambda: 1.0)
        waits = [backoff.next() for _ in range(9)]
        self.assertEqual(waits, [0.5, 1, 2, 4, 8, 16, 30, 30, 30])
        backoff.reset()
        self.assertEqual(backoff.next(), 0.5)
        self.assertEqual(Backoff(0.5, 30, lambda: 0.0).next(), 0.25)
        self.assertTrue(0.25 <= Backoff(0.5, 30).next() <= 0.5)

    def die(self, wait: float) -> None:
        """The first worker dies and returns after `wait` seconds, not before."""
        before = self.started()
        self.child().die(signal=9)
        self.pass_(wait - 0.25)
        self.assertEqual(self.started(), before)
        self.pass_(0.25)
        self.assertEqual(self.started(), before + 1)

    def test_growsUntilSuccess(self) -> None:
        """Loading the model is no success yet, nor is a declared error; a window is."""
        self.ready()
        self.die(0.5)
        self.die(1)
        self.load("worker 1")
        self.die(2)
        self.load("worker 1")
        self.transcribe()  # to the other one, which has waited longer
        self.transcribe()
        self.child().refuse(TranscribeWindows, RecognitionFailed("no such file"))
        self.starter.flush()
        self.die(4)
        self.load("worker 1")
        self.transcribe()
        self.answer()
        self.die(0.5)

    def test_limit(self) -> None:
        self.ready()
        for wait in (0.5, 1, 2, 4, 8, 16, 30, 30):
            self.die(wait)

    def test_eachItsOwn(self) -> None:
        self.ready()
        self.die(0.5)
        self.die(1)
        self.child("worker 2").die(signal=9)
        self.pass_(0.5)
        self.assertEqual(self.started("worker 2"), 2)


class StoppingTests(PoolTestCase):
    def stop(self) -> Deferred[None]:
        stopped = self.pool.stop()
        self.starter.flush()
        return stopped

    def test_notStarted(self) -> None:
        self.successResultOf(self.stop())

    def test_resolving(self) -> None:
        self.pool.start()
        self.successResultOf(self.stop())
        self.assertEqual(self.starter.children[0].signals, [])

    def test_loading(self) -> None:
        self.resolve()
        self.successResultOf(self.stop())
        self.assertTrue(self.starter.children[1].closed)

    def test_idle(self) -> None:
        self.ready()
        children = [self.child("worker 1"), self.child("worker 2")]
        self.successResultOf(self.stop())
        for child in children:
            self.assertEqual((child.count(Shutdown), child.signals), (1, []))
        self.assertEqual((self.pool.idle, self.pool.status().ready), (0, 0))

    def test_busy(self) -> None:
        """A window in work fails; whoever hears it gets no other worker."""
        self.ready()
        again: list[Deferred[list[WindowResult]]] = []
        result = self.transcribe()

        def retry(failure: Failure) -> Failure:
            again.append(self.pool.transcribe([PIECE]))
            return failure

        result.addErrback(retry)
        stopped = self.stop()
        self.assertEqual(self.failed(result), "the worker is being stopped")
        self.failed(again[0])
        self.successResultOf(stopped)

    def test_backingOff(self) -> None:
        self.ready()
        self.child().die(signal=9)
        self.successResultOf(self.stop())
        self.pass_(60)
        self.assertEqual(self.started(), 1)

    def test_dying(self) -> None:
        """Killed already, but not gone yet."""
        self.ready()
        child = self.child()
        self.transcribe()
        child.answer(TranscribeWindows, results=b"")
        cast(Any, child).signal = child.signals.append
        self.starter.flush()
        stopped = self.stop()
        self.assertNoResult(stopped)
        child.die(signal=9)
        self.successResultOf(stopped)

    def test_stubborn(self) -> None:
        """Asked, then SIGTERM after two seconds, SIGKILL after three more."""
        self.ready()
        idle, busy = self.child("worker 2"), self.child("worker 1")
        idle.stubborn = busy.stubborn = True
        self.transcribe()
        stopped = self.stop()
        self.assertTrue(busy.closed)
        self.pass_(1.75)
        self.assertEqual(idle.signals + busy.signals, [])
        self.pass_(0.25)
        self.assertEqual(idle.signals + busy.signals, ["TERM", "TERM"])
        self.pass_(2.75)
        self.assertNoResult(stopped)
        self.pass_(0.25)
        self.successResultOf(stopped)
        self.assertEqual((idle.signals, busy.signals), (["TERM", "KILL"], ["TERM", "KILL"]))

    def test_twice(self) -> None:
        self.ready()
        self.child().stubborn = True
        first, second = self.stop(), self.stop()
        self.assertNoResult(first)
        self.pass_(5)
        self.successResultOf(first)
        self.successResultOf(second)
        self.successResultOf(self.stop())

    def test_lateAnswer(self) -> None:
        """What arrives after the stop is nobody's any more."""
        self.ready()
        child = self.child()
        child.stubborn = True
        result = self.transcribe()
        stopped = self.stop()
        self.failed(result)
        freed = self.freed
        child.answer(TranscribeWindows, results=encode_results([RESULT]))
        self.starter.flush()
        self.assertEqual((self.freed, self.pool.idle), (freed, 0))
        self.pass_(5)
        self.successResultOf(stopped)

    def test_fromWithin(self) -> None:
        """Stopping from a worker's own news."""
        self.resolve()
        stopped: list[Deferred[None]] = []
        self.pool.whenFree = lambda: stopped.append(self.pool.stop())
        self.load("worker 1")
        self.successResultOf(stopped[0])


class AutomaticTests(PoolTestCase):
    workers = None
    threads = None

    def test_chosen(self) -> None:
        self.resolve()
        status = self.pool.status()
        self.assertEqual((status.workers, status.threads), (4, 1))
        self.assertEqual(self.child("worker 4").threads, 1)

    def test_oneWhereAGPUComputes(self) -> None:
        self.pool.start()
        self.starter.flush()
        model = msgspec.structs.replace(MODEL, device="cuda")
        self.child("resolver").answer(ResolveModel, model=encode(model))
        self.starter.flush()
        status = self.pool.status()
        self.assertEqual((status.workers, status.threads), (1, 4))


class TooManyTests(PoolTestCase):
    workers = 3
    threads = 2

    def test_obeysAndWarns(self) -> None:
        with capturedLogs() as logged:
            self.resolve()
        self.assertEqual(self.pool.status().workers, 3)
        self.assertIn(4, [event.get("cores") for event in logged])


class EnvironmentTests(SynchronousTestCase):
    def test_minimal(self) -> None:
        """What is not named is not passed on, least of all secrets of the daemon."""
        environment = child_environment(
            3,
            {
                "PATH": "/bin",
                "HF_HOME": "/hf",
                "TRANSCRIBED_TOKEN": "secret",
                "PGPASSWORD": "secret",
                "OMP_NUM_THREADS": "64",
                "PYTHONPATH": "/x",
            },
        )
        self.assertEqual(environment["PATH"], "/bin")
        self.assertEqual(environment["HF_HOME"], "/hf")
        self.assertNotIn("secret", environment.values())
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            self.assertEqual(environment[name], "3")
        self.assertEqual(environment["TOKENIZERS_PARALLELISM"], "false")
        self.assertEqual(environment["PYTHONPATH"].split(os.pathsep)[-1], "/x")

    def test_parentImportsLittle(self) -> None:
        """Importing the pool loads neither a reactor nor anything that computes."""
        code = (
            "import sys, transcribed.pool\n"
            "heavy = {'torch', 'numpy', 'transformers', 'ampoule', 'transcribed.worker'}\n"
            "sys.exit(bool(heavy & set(sys.modules) or 'twisted.internet.reactor' in sys.modules))"
        )
        root = str(Path(__file__).resolve().parent.parent)
        subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


class LineLogTests(SynchronousTestCase):
    def lines(self, *chunks: bytes) -> list[tuple[str, str]]:
        log = LineLog("worker 7")
        with capturedLogs() as logged:
            for chunk in chunks:
                log.feed(chunk)
            log.close()
        self.assertEqual({event["name"] for event in logged} - {"worker 7"}, set())
        return [(event["log_level"].name, event["line"]) for event in logged]

    def test_chunks(self) -> None:
        self.assertEqual(
            self.lines(b"on", b"e\ntw", b"o\n\n", b"r\xc3", b"\xa4\xff{x}"),
            [("info", "one"), ("info", "two"), ("info", "rä\ufffd{x}")],
        )

    def test_formatted(self) -> None:
        """Twisted's own lines keep their level, also the further lines of a traceback."""
        text = (
            b"2026-01-02T03:04:05+0000 [a.b#warn] careful\n"
            b"2026-01-02T03:04:05+0000 [-#critical] it broke\n\tTraceback\n"
            b"2026-01-02T03:04:05+0000 [-#nonsense] what\nplain\n"
        )
        self.assertEqual(
            self.lines(text),
            [
                ("warn", "careful"),
                ("critical", "it broke"),
                ("critical", "\tTraceback"),
                ("info", "what"),
                ("info", "plain"),
            ],
        )

    def test_tooLong(self) -> None:
        """The memory for a line is bounded; the next line is whole again."""
        expected = [("info", "x" * LONGEST_LINE + "…"), ("info", "next")]
        self.assertEqual(self.lines(*[b"x" * 1000] * 50, b"\nnext\n"), expected)
        self.assertEqual(self.lines(b"x" * 50000 + b"\nnext\n"), expected)


def until(condition: Callable[[], object]) -> Deferred[None]:
    """Fires once `condition` holds; trial's time-out is its deadline."""

    def check(ignored: object = None) -> Any:
        if condition():
            return None
        return deferLater(cast(Any, reactor), 0.02, lambda: None).addCallback(check)

    return cast("Deferred[None]", deferLater(cast(Any, reactor), 0, check))


class RealChildrenTests(TestCase):
    """Real processes (no model), of :class:`tests.stubworker.StubWorker`."""

    timeout = 120

    def setUp(self) -> None:
        self.pool = RecognizerPool(
            "stub",
            "/cache",
            "auto",
            2,
            1,
            "sv",
            cast(Any, reactor),
            process_starter(cast(Any, reactor), "tests.stubworker.StubWorker"),
            times=Times(ping=0.2, pong=4),
            jitter=lambda: 0.0,
        )
        self.addCleanup(self.pool.stop)

    async def started(self) -> None:
        self.pool.start()
        await until(lambda: self.pool.idle == 2)

    async def pid(self) -> int:
        """The process of the worker that has waited longest; it tells in place of a stride."""
        (result,) = await self.pool.transcribe([PIECE])
        assert isinstance(result, CTCResult)
        return int(result.stride)

    def test_lives(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.lives())

    async def lives(self) -> None:
        """A worker that exits, answers rubbish, stops itself or is killed is replaced."""
        await self.started()
        self.assertEqual(self.pool.status().precision, "1 threads")
        pids = {await self.pid(), await self.pid()}
        self.assertEqual(len(pids), 2)
        # While all the rest happens to one worker, the other one's window goes on.
        other = self.pool.transcribe([piece("wait")])
        await until(lambda: self.pool.idle == 1)
        self.assertEqual(await self.poison("exit"), "the worker died (7)")
        self.assertEqual(await self.poison("rubbish"), "the worker answered with rubbish")
        self.assertIn("hung: no answer", await self.poison("sigstop"))
        self.assertIn("no such file", await self.poison("refuse"))
        self.assertIn("error or rubbish", await self.poison("raise"))
        self.assertIn("rubbish", await self.poison("noise"))
        # Its own child holds its stderr open: that must not keep the dead worker alive.
        orphan = Path(self.mktemp())
        self.assertEqual(await self.poison(f"orphan:{orphan}"), "the worker died (8)")
        os.kill(int(orphan.read_text()), signal.SIGKILL)
        self.assertFalse(other.called)
        stopped = self.pool.stop()
        self.failureResultOf(other, RecognitionFailed)
        await stopped

    async def poison(self, path: str) -> str:
        try:
            await self.pool.transcribe([piece(path)])
        except RecognitionFailed as e:
            await until(lambda: self.pool.idle == 1)
            return str(e)
        raise AssertionError("it was transcribed")

    def test_killedIdle(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.killedIdle())

    async def killedIdle(self) -> None:
        await self.started()
        pid = await self.pid()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: self.pool.idle == 1)
        await until(lambda: self.pool.idle == 2)
        self.assertNotIn(pid, {await self.pid(), await self.pid()})
