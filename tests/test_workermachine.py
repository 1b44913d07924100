"""A worker and its every life: at work, pinged, broken, started again, stopped."""

from __future__ import annotations

from typing import Any, cast

from ampoule.commands import Echo, Shutdown
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from tests.poolcase import PIECE, RESULT, PoolTestCase, piece
from transcribed.commands import TranscribeWindows
from transcribed.errors import RecognitionFailed
from transcribed.recognition import (
    WindowResult,
    WordsResult,
    decode_pieces,
    encode_results,
)
from transcribed.work import Backoff, Times


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


class GrowthTests(PoolTestCase):
    """A worker that leaks is replaced before it takes the machine's memory."""

    BOUND = Times().growth
    READY = 1 << 30

    def grow(self, by: int) -> Deferred[list[WindowResult]]:
        """The first worker has `by` bytes more when its window is done."""
        result = self.transcribe()
        self.child().size = self.READY + by
        self.answer()
        return result

    def test_bound(self) -> None:
        self.assertEqual(self.BOUND, 2 * 1024**3)
        self.ready()
        child = self.child()
        self.successResultOf(self.grow(self.BOUND))
        self.assertTrue(child.alive)
        self.assertEqual((self.pool.idle, self.pool.status().ready), (2, 2))
        self.transcribe()
        self.answer("worker 2")
        self.successResultOf(self.grow(self.BOUND + 1))
        self.assertFalse(child.alive)

    def test_replaced(self) -> None:
        """Its results are kept, and it is back at once, with the bound from its new beginning."""
        self.ready()
        child = self.child()
        with capturedLogs() as logged:
            result = self.grow(self.BOUND + (5 << 20))
        self.assertEqual(self.successResultOf(result), [RESULT])
        self.assertEqual((child.signals, child.alive), (["KILL"], False))
        self.assertEqual((self.pool.idle, self.pool.status().ready), (1, 1))
        [told] = [event for event in logged if "reason" in event]
        self.assertEqual((told["worker"], told["reason"]), ("worker 1", "has grown by 2053 MiB"))
        self.pass_(0.5)
        self.child().size = self.READY = 3 << 30
        self.load("worker 1")
        self.assertEqual(self.pool.idle, 2)
        self.transcribe()
        self.answer("worker 2")
        self.successResultOf(self.grow(self.BOUND))
        self.assertTrue(self.child().alive)

    def test_lostBeforeTheResultIsThere(self) -> None:
        """Whoever gets the result finds the pool as it is."""
        self.ready()
        result = self.transcribe()
        found: list[tuple[int, int]] = []
        result.addCallback(lambda _: found.append((self.pool.idle, self.pool.status().ready)))
        self.child().size = self.READY + self.BOUND + 1
        self.answer()
        self.assertEqual(found, [(1, 1)])

    def test_theWaitDoesNotGrow(self) -> None:
        self.ready()
        result, _ = self.transcribe(), self.transcribe()
        for round in range(1, 6):
            self.child().size = self.READY + self.BOUND + 1
            self.answer()
            self.successResultOf(result)
            self.pass_(0.25)
            self.assertEqual(self.started(), round)
            self.pass_(0.25)
            self.assertEqual(self.started(), round + 1)
            self.load("worker 1")
            result = self.transcribe()

    def test_afterARefusal(self) -> None:
        """A declared error is handed on as it is, and the worker replaced all the same."""
        self.ready()
        result = self.transcribe()
        child = self.child()
        child.size = self.READY + self.BOUND + 1
        child.refuse(TranscribeWindows, RecognitionFailed("no such file"))
        self.starter.flush()
        self.assertEqual(self.failed(result), "no such file")
        self.assertFalse(child.alive)
        self.pass_(0.5)
        self.load("worker 1")
        self.assertEqual(self.pool.idle, 2)

    def test_unknown(self) -> None:
        """Where nothing is known of memory, nobody is replaced for it."""
        self.resolve()
        self.child().size = None
        self.load("worker 1", "worker 2")
        self.successResultOf(self.grow(self.BOUND * 9))
        self.transcribe()
        self.child("worker 2").size = None
        self.answer("worker 2")
        self.assertEqual(self.pool.idle, 2)

    def test_killTakesTime(self) -> None:
        """What it still says while it is being killed is nobody's."""
        self.ready()
        child = self.child()
        cast(Any, child).signal = child.signals.append
        self.successResultOf(self.grow(self.BOUND + 1))
        self.pass_(60)
        self.assertEqual((child.signals, self.started(), self.pool.idle), (["KILL"], 1, 1))
        child.die(signal=9)
        self.pass_(0.5)
        self.assertEqual(self.started(), 2)

    def test_answerAfterTheStop(self) -> None:
        self.ready()
        child = self.child()
        child.stubborn = True
        result = self.transcribe()
        child.size = self.READY + self.BOUND + 1
        stopped = self.pool.stop()
        self.failed(result)
        self.answer()
        self.pass_(5)
        self.successResultOf(stopped)


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
