"""One recording in the queue: while it comes in, after a restart, as its windows are done."""

from __future__ import annotations

from dataclasses import replace

import msgspec

import transcribed.job
from tests.fakes import MODEL
from tests.schedulercase import RATE, SchedulerTestCase, job, result
from transcribed.job import Job
from transcribed.recognition import StoredWindow, Window, cut
from transcribed.scheduler import (
    Scheduler,
)
from transcribed.transcript import State


class UploadTests(SchedulerTestCase):
    """Recordings that are still coming in."""

    def open(self, key: str = "u", owner: str = "anna") -> Job:
        one = job(key, owner, open=True)
        self.scheduler.open(one)
        return one

    def grow(self, one: Job, seconds: float) -> bool:
        return self.scheduler.grow(one, int(seconds * RATE))

    def accept(self, one: Job, seconds: float) -> None:
        frames = int(seconds * RATE)
        self.scheduler.accept(one, replace(one.transcript, frames=frames, state=State.QUEUED))

    def test_nothingBeforeTheFirstWindowIsFinal(self) -> None:
        one = self.open()
        for seconds in (0, 1, 23, 25.9, 26):
            self.assertFalse(self.grow(one, seconds))
            self.assertEqual(self.dealt(), [])
        self.assertTrue(self.grow(one, 26 + 1 / RATE))
        self.assertEqual(self.dealt(), ["u0"])

    def test_windowsFollowTheAudio(self) -> None:
        """However it comes in, those that are dealt are those of the whole recording."""
        whole = cut(130 * RATE, RATE, MODEL.core, MODEL.context)
        for step in (1 / RATE, 0.25, 1, 7, 26.5, 60, 129):
            self.setUp()
            one = self.open()
            windows = []
            sizes = 0
            while (seconds := sizes * step) < 130:
                # Of single frames, only those around the limits.
                if step > 0.01 or abs(seconds % 20 - 6) < 0.01:
                    self.grow(one, seconds)
                    while batch := self.scheduler.next(1):
                        self.assertLess(batch[0].window.stop, one.frames)
                        windows.append(batch[0].window)
                sizes += 1
            self.assertEqual(windows, whole[: len(windows)])
            self.assertEqual(len(windows), len(cut(one.frames, RATE, 20, 3)) - 1)
            self.accept(one, 130)
            while batch := self.scheduler.next(1):
                windows.append(batch[0].window)
            self.assertEqual(windows, whole)

    def test_itIsCutAgainOnlyForAnotherWindow(self) -> None:
        """Frames may be as small as they like: little is done for each."""
        calls: list[int] = []

        def counted(frames: int, *rest: int) -> list[Window]:
            calls.append(frames)
            return cut(frames, *rest)

        self.patch(transcribed.job, "cut", counted)
        one = self.open()
        for seconds in range(200):
            self.grow(one, seconds + 0.5)
        self.assertEqual(len(calls), 1 + len(self.dealt()))

    def test_atTheEndTheLastWindowIsLeft(self) -> None:
        one = self.open()
        self.grow(one, 64)
        for _ in range(2):
            self.scheduler.done(self.deal(), result())
        self.assertEqual((one.progress, one.complete), (0.0, False))
        self.accept(one, 64)
        self.assertEqual((one.progress, one.complete), (0.6667, False))
        self.finish(self.deal())
        self.assertEqual(self.scheduler.due(), [])
        self.assertNothingLeft()

    def test_dueOnceItIsAccepted(self) -> None:
        """As it was in work before, or was given up."""
        fresh, working, heard, poisoned = (self.open(key) for key in "fwhp")
        for one in (working, heard, poisoned):
            self.grow(one, 30)
        in_work = {dealt.job: dealt for dealt in (self.deal(), self.deal(), self.deal())}
        self.scheduler.done(in_work[heard], result())
        self.scheduler.give_up(poisoned, "poison")
        self.grow(poisoned, 100)
        self.assertEqual(self.dealt(), [])
        self.assertEqual(self.scheduler.due(), [])
        for one in (fresh, working, heard, poisoned):
            self.accept(one, 100)
        self.assertEqual(self.scheduler.due(), [working, heard, poisoned])
        self.assertEqual(self.scheduler.due(), [])
        self.assertNotIn("p", {name[0] for name in self.dealt()})

    def test_notDueWhenItIsTakenOut(self) -> None:
        one = self.open()
        self.grow(one, 30)
        self.deal()
        self.accept(one, 30)
        self.scheduler.remove("u")
        self.assertNothingLeft()

    def test_brokenOff(self) -> None:
        one = self.open()
        self.grow(one, 64)
        in_work = self.deal()
        self.scheduler.remove("u")
        self.assertFalse(self.scheduler.wants(in_work))
        self.assertNothingLeft()

    def test_theModelIsKnownLater(self) -> None:
        self.scheduler = Scheduler(100)
        one = self.open()
        self.assertFalse(self.grow(one, 64))
        self.assertEqual((self.dealt(), one.progress), ([], 0.0))
        self.scheduler.use(MODEL)
        self.assertEqual(self.dealt(), ["u0", "u1"])
        self.accept(one, 64)
        self.assertEqual(self.dealt(), ["u2"])

    def test_theModelIsKnownAfterTheEnd(self) -> None:
        self.scheduler = Scheduler(100)
        one = self.open()
        self.grow(one, 64)
        self.accept(one, 64)
        self.scheduler.use(MODEL)
        self.assertEqual(self.dealt(), ["u0", "u1", "u2"])

    def test_theModelChanges(self) -> None:
        """What the one heard is not mixed with what the other hears."""
        one = self.open()
        self.grow(one, 64)
        self.scheduler.done(self.deal(), result("ett"))
        in_work = self.deal()
        self.scheduler.use(msgspec.structs.replace(MODEL, digest="other"))
        self.assertFalse(self.scheduler.wants(in_work))
        self.assertEqual(one.results, {})
        self.accept(one, 64)
        self.assertEqual(self.dealt(), ["u0", "u1", "u2"])

    def test_itHasItsShareAndNoMore(self) -> None:
        uploading = self.open("u", "ulla")
        self.grow(uploading, 1000)
        self.add(job("a", "anna", 40))
        self.assertEqual(self.dealt(6), ["u0", "a0", "u1", "a1", "u2", "a2"])
        self.add(job("n", "nora", seconds=5))
        self.assertEqual(self.dealt(1), ["n0"])


class StoredTests(SchedulerTestCase):
    """Results that an earlier daemon left."""

    def stored(self, *positions: int, model: str = MODEL.mark) -> list[StoredWindow]:
        return [StoredWindow(model, position, result(str(position))) for position in positions]

    def test_ofTheSameModelAreNotMadeAgain(self) -> None:
        one = job("a", windows=4, stored=self.stored(2, 0))
        self.add(one)
        self.assertEqual(self.dealt(), ["a1", "a3"])
        self.assertEqual(one.results, {0: result("0"), 2: result("2")})
        self.assertEqual(one.progress, 0.5)
        self.assertEqual(one.stored, [])

    def test_ofAnotherModelAreMadeAgain(self) -> None:
        one = job("a", windows=3, stored=[*self.stored(0, 2, model="other"), *self.stored(1)])
        self.add(one)
        self.assertEqual(self.dealt(), ["a0", "a2"])
        self.assertEqual(one.results, {1: result("1")})

    def test_beyondTheLastWindowAreLeftOut(self) -> None:
        one = job("a", windows=2, stored=self.stored(1, 2, 7))
        self.add(one)
        self.assertEqual(self.dealt(), ["a0"])
        self.assertEqual(list(one.results), [1])

    def test_beforeTheModelIsKnown(self) -> None:
        self.scheduler = Scheduler(1)
        self.add(job("a", windows=3, stored=self.stored(1)))
        self.assertEqual((self.dealt(), self.scheduler.due()), ([], []))
        self.scheduler.use(MODEL)
        self.assertEqual(self.dealt(), ["a0", "a2"])

    def test_allThereIsDueOnce(self) -> None:
        one = job("a", windows=2, stored=self.stored(0, 1))
        self.add(one, job("b"), job("c", "bjorn"))
        self.assertEqual(self.scheduler.due(), [one])
        self.assertTrue(one.complete)
        self.assertEqual(one.progress, 1.0)
        self.assertEqual(self.scheduler.due(), [])
        self.assertEqual(self.dealt(), ["b0", "c0"])
        for key in "abc":
            self.scheduler.remove(key)
        self.assertNothingLeft()

    def test_allThereBeforeTheModelIsKnown(self) -> None:
        self.scheduler = Scheduler(1)
        one = job("a", windows=2, stored=self.stored(0, 1))
        self.add(one)
        self.scheduler.use(MODEL)
        self.assertEqual(self.scheduler.due(), [one])


class JobTests(SchedulerTestCase):
    """What a job knows of itself."""

    def test_beforeItIsCut(self) -> None:
        one = job("a", windows=2)
        self.assertEqual((one.key, one.progress, one.complete), ("a", 0.0, False))

    def test_progress(self) -> None:
        one = job("a", windows=3)
        self.add(one)
        progress = []
        for _ in range(3):
            dealt = self.deal()
            progress.append((one.progress, one.complete))
            self.scheduler.done(dealt, result())
        self.assertEqual(progress, [(0.0, False), (0.3333, False), (0.6667, False)])
        self.assertEqual((one.progress, one.complete), (1.0, True))

    def test_cutForTheModelInUse(self) -> None:
        self.scheduler.use(small := msgspec.structs.replace(MODEL, core=5, context=0))
        self.add(one := job("a", windows=1))
        self.assertEqual(one.windows, cut(one.transcript.frames, RATE, small.core, small.context))
        self.assertGreater(len(one.windows), 1)

    def test_secondsLeft(self) -> None:
        self.add(one := job("a", windows=2))
        self.assertEqual(one.seconds_left, 26 + 23)
        dealt = self.deal()
        self.assertEqual(one.seconds_left, 23)
        self.scheduler.failed(dealt, alone=True)
        self.assertEqual(one.seconds_left, 26 + 23)

    def test_whatAWorkerIsAsked(self) -> None:
        self.add(job("a", windows=2, language="en"))
        piece = self.deal().piece
        self.assertEqual((piece.audio.path, piece.audio.rate), ("/spool/a.audio", RATE))
        self.assertEqual((piece.language, piece.seconds), ("en", 26.0))
