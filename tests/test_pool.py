"""The pool: the model is found and loaded, the cores are shared out."""

from __future__ import annotations

import msgspec
from twisted.logger import LogLevel, capturedLogs

from tests.poolcase import MODEL, PoolTestCase
from transcribed.commands import LoadModel, ResolveModel
from transcribed.errors import ModelUnavailable
from transcribed.interfaces import IRecognizerPool
from transcribed.recognition import (
    Model,
    decode,
    encode,
)


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
