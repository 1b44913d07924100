"""The queue: its bound, whose turn it is, retries, removal, and results from before."""

from __future__ import annotations

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import MODEL
from transcribed.errors import Busy
from transcribed.interfaces import SpooledAudio
from transcribed.recognition import StoredWindow, Window, Word, WordsResult, cut
from transcribed.scheduler import MAX_TRIES, RETRY_FULL_QUEUE, Job, Scheduler
from transcribed.transcript import State, Transcript

RATE = 8000


def result(*words: str) -> WordsResult:
    return WordsResult([Word(word, 0.0, 1.0, 1.0) for word in words])


def job(
    key: str,
    owner: str = "anna",
    windows: int = 1,
    stored: list[StoredWindow] | None = None,
) -> Job:
    """A recording that `MODEL` has cut into so many windows."""
    seconds = MODEL.core * windows + MODEL.context
    frames = seconds * RATE
    assert len(cut(frames, RATE, MODEL.core, MODEL.context)) == windows
    transcript = Transcript(
        key=key,
        owner=owner,
        id=key,
        receiver=owner,
        rate=RATE,
        channels=1,
        frames=frames,
        sha256="",
        language="sv",
        state=State.QUEUED,
        created=0.0,
        expires=1.0,
    )
    return Job(transcript, SpooledAudio(f"/spool/{key}.audio", RATE, 1), stored or [])


class SchedulerTestCase(SynchronousTestCase):
    """Has a scheduler, and at the end nothing must be left in it that was taken out."""

    def setUp(self) -> None:
        self.scheduler = Scheduler(100)

    def add(self, *jobs: Job) -> None:
        for each in jobs:
            self.scheduler.add(each)

    def deal(self) -> tuple[Job, Window]:
        """The next window, which there must be."""
        dealt = self.scheduler.next(MODEL)
        assert dealt is not None
        job, window = dealt
        assert window is not None
        return job, window

    def dealt(self, most: int = 1000) -> list[str]:
        """What is dealt out from now on: keys with positions."""
        names: list[str] = []
        while len(names) < most and (dealt := self.scheduler.next(MODEL)) is not None:
            names.append(dealt[0].key + (str(dealt[1].position) if dealt[1] else ""))
        return names

    def assertNothingLeft(self) -> None:
        self.assertEqual(len(self.scheduler), 0)
        self.assertEqual(self.scheduler._jobs, {})
        self.assertEqual(dict(self.scheduler._turns), {})
        self.assertEqual(self.scheduler._reserved, 0)
        self.assertIs(self.scheduler.next(MODEL), None)


class BoundTests(SchedulerTestCase):
    """The most recordings at once."""

    def setUp(self) -> None:
        self.scheduler = Scheduler(2)

    def test_reservationsCount(self) -> None:
        self.scheduler.reserve()
        self.scheduler.reserve()
        error = self.assertRaises(Busy, self.scheduler.reserve)
        self.assertEqual(error.retry_after, RETRY_FULL_QUEUE)
        self.scheduler.release()
        self.scheduler.reserve()
        self.assertRaises(Busy, self.scheduler.reserve)
        self.scheduler.release()
        self.scheduler.release()
        self.assertNothingLeft()

    def test_recordingsCountUntilTheyAreTakenOut(self) -> None:
        self.add(job("a"))
        self.scheduler.reserve()
        self.assertRaises(Busy, self.scheduler.reserve)
        # Dealt out is not out.
        self.deal()
        self.assertRaises(Busy, self.scheduler.reserve)
        self.scheduler.remove("a")
        self.scheduler.reserve()
        self.assertRaises(Busy, self.scheduler.reserve)

    def test_reservationBecomesARecording(self) -> None:
        for key in ("a", "b"):
            self.scheduler.reserve()
            self.add(job(key))
            self.scheduler.release()
        self.assertRaises(Busy, self.scheduler.reserve)
        self.assertEqual(len(self.scheduler), 2)

    def test_whatWasAcceptedIsNeverRefused(self) -> None:
        self.add(*(job(key) for key in "abcd"))
        self.assertEqual(len(self.scheduler), 4)
        self.assertRaises(Busy, self.scheduler.reserve)
        self.assertEqual(self.dealt(), ["a0", "b0", "c0", "d0"])

    def test_limitOfOne(self) -> None:
        scheduler = Scheduler(1)
        scheduler.reserve()
        self.assertRaises(Busy, scheduler.reserve)


class TurnTests(SchedulerTestCase):
    """Whose window is next."""

    def test_nothing(self) -> None:
        self.assertIs(self.scheduler.next(MODEL), None)

    def test_windowsInOrder(self) -> None:
        self.add(job("a", windows=4))
        self.assertEqual(self.dealt(), ["a0", "a1", "a2", "a3"])
        self.assertEqual(len(self.scheduler), 1)

    def test_windowsAreThoseOfTheCut(self) -> None:
        one = job("a", windows=3)
        self.add(one)
        windows = [self.deal()[1] for _ in range(3)]
        frames = one.transcript.frames
        self.assertEqual(windows, cut(frames, RATE, MODEL.core, MODEL.context))

    def test_firstInFirstOutInsideAnOwner(self) -> None:
        self.add(job("a", windows=2), job("b"), job("c", windows=2))
        self.assertEqual(self.dealt(), ["a0", "a1", "b0", "c0", "c1"])

    def test_ownersTakeTurns(self) -> None:
        self.add(
            job("a", "anna", 4),
            job("b", "anna"),
            job("c", "bjorn", 2),
            job("d", "cecilia"),
        )
        self.assertEqual(self.dealt(), ["a0", "c0", "d0", "a1", "c1", "a2", "a3", "b0"])

    def test_newOwnerWaitsForNobodysLongRecording(self) -> None:
        self.add(job("a", "anna", 50))
        self.assertEqual(self.dealt(3), ["a0", "a1", "a2"])
        self.add(job("b", "bjorn", 2))
        self.assertEqual(self.dealt(4), ["a3", "b0", "a4", "b1"])

    def test_manyRecordingsDoNotBuyTurns(self) -> None:
        self.add(*(job(f"a{i}-", "anna") for i in range(5)), job("b", "bjorn", 3))
        self.assertEqual(self.dealt(6), ["a0-0", "b0", "a1-0", "b1", "a2-0", "b2"])


class RetryTests(SchedulerTestCase):
    """Windows that failed."""

    def test_firstInItsRecording(self) -> None:
        self.add(job("a", windows=3))
        one, window = self.deal()
        self.assertTrue(self.scheduler.failed(one, window))
        self.assertEqual(self.dealt(), ["a0", "a1", "a2"])

    def test_beforeTheOwnersNextRecording(self) -> None:
        self.add(job("a"), job("b", windows=2))
        one, window = self.deal()
        self.assertEqual(self.dealt(1), ["b0"])
        self.assertTrue(self.scheduler.failed(one, window))
        self.assertEqual(self.dealt(), ["a0", "b1"])

    def test_afterAllWasDealt(self) -> None:
        self.add(job("a", windows=2))
        one, window = self.deal()
        self.assertEqual(self.dealt(), ["a1"])
        self.assertTrue(self.scheduler.failed(one, window))
        self.assertEqual(self.dealt(), ["a0"])

    def test_otherOwnersStillHaveTheirTurns(self) -> None:
        self.add(job("a", "anna"), job("b", "bjorn", 2))
        one, window = self.deal()
        self.scheduler.failed(one, window)
        self.assertEqual(self.dealt(), ["b0", "a0", "b1"])

    def test_endAfterThreeTries(self) -> None:
        self.assertEqual(MAX_TRIES, 3)
        self.add(job("a"))
        for expected in (True, True, False):
            one, window = self.deal()
            self.assertIs(self.scheduler.failed(one, window), expected)
        self.assertIs(self.scheduler.next(MODEL), None)
        self.assertIs(self.scheduler.remove("a"), one)
        self.assertNothingLeft()

    def test_eachWindowHasItsOwnTries(self) -> None:
        self.add(job("a", windows=2))
        for _ in range(2):
            one, first = self.deal()
            _, second = self.deal()
            self.assertTrue(self.scheduler.failed(one, second))
            self.assertTrue(self.scheduler.failed(one, first))
        self.assertEqual(self.dealt(), ["a0", "a1"])
        self.assertFalse(self.scheduler.failed(one, second))

    def test_takenOutMeanwhile(self) -> None:
        self.add(job("a", windows=2))
        one, window = self.deal()
        self.scheduler.remove("a")
        self.scheduler.failed(one, window)
        self.assertNothingLeft()


class RemoveTests(SchedulerTestCase):
    """Taking a recording out, at every stage."""

    def test_unknown(self) -> None:
        self.assertIs(self.scheduler.remove("a"), None)
        self.assertIs(self.scheduler.get("a"), None)

    def test_beforeItsFirstWindow(self) -> None:
        one = job("a", windows=2)
        self.add(one)
        self.assertIs(self.scheduler.get("a"), one)
        self.assertIs(self.scheduler.remove("a"), one)
        self.assertIs(self.scheduler.get("a"), None)
        self.assertIs(self.scheduler.remove("a"), None)
        self.assertNothingLeft()

    def test_withSomeWindowsDealt(self) -> None:
        self.add(job("a", windows=3))
        self.deal()
        self.scheduler.remove("a")
        self.assertNothingLeft()

    def test_withAllWindowsDealt(self) -> None:
        self.add(job("a", windows=2))
        self.dealt()
        self.scheduler.remove("a")
        self.assertNothingLeft()

    def test_waitingForARetry(self) -> None:
        self.add(job("a"))
        self.scheduler.failed(*self.deal())
        self.scheduler.remove("a")
        self.assertNothingLeft()

    def test_complete(self) -> None:
        one = job("a", windows=2)
        self.add(one)
        for _ in range(2):
            self.scheduler.done(*self.deal(), result("hej"))
        self.assertTrue(one.complete)
        self.scheduler.remove("a")
        self.assertNothingLeft()

    def test_othersStay(self) -> None:
        self.add(job("a"), job("b"), job("c", "bjorn"), job("d"))
        self.scheduler.remove("b")
        self.assertEqual(self.dealt(), ["a0", "c0", "d0"])
        for key in "acd":
            self.scheduler.remove(key)
        self.assertNothingLeft()

    def test_nothingLeftAfterMuchOfEverything(self) -> None:
        for round_ in range(20):
            for number, owner in enumerate(("anna", "bjorn", "cecilia")):
                self.scheduler.reserve()
                self.add(job(f"{round_}-{number}", owner, 1 + number))
                self.scheduler.release()
            while (dealt := self.scheduler.next(MODEL)) is not None:
                one, window = dealt
                assert window is not None
                if (round_ + window.position) % 3 == 0:
                    self.scheduler.failed(one, window)
                    if one.tries[window.position] == MAX_TRIES:
                        self.scheduler.remove(one.key)
                else:
                    self.scheduler.done(one, window, result())
                    if one.complete:
                        self.scheduler.remove(one.key)
        self.assertNothingLeft()


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

    def test_allThereIsDealtOnceWithoutAWindow(self) -> None:
        one = job("a", windows=2, stored=self.stored(0, 1))
        self.add(one)
        self.assertEqual(self.scheduler.next(MODEL), (one, None))
        self.assertTrue(one.complete)
        self.assertEqual(one.progress, 1.0)
        self.assertIs(self.scheduler.next(MODEL), None)
        self.assertIs(self.scheduler.remove("a"), one)
        self.assertNothingLeft()

    def test_allThereDoesNotHoldUpOthers(self) -> None:
        self.add(job("a", windows=1, stored=self.stored(0)), job("b"), job("c", "bjorn"))
        self.assertEqual(self.dealt(), ["a", "c0", "b0"])


class JobTests(SynchronousTestCase):
    """What a job knows of itself."""

    def test_beforeItIsCut(self) -> None:
        one = job("a", windows=2)
        self.assertEqual((one.key, one.progress, one.complete), ("a", 0.0, False))

    def test_progress(self) -> None:
        scheduler = Scheduler(1)
        one = job("a", windows=3)
        scheduler.add(one)
        progress = []
        for _ in range(3):
            dealt = scheduler.next(MODEL)
            assert dealt is not None and dealt[1] is not None
            progress.append((one.progress, one.complete))
            scheduler.done(one, dealt[1], result())
        self.assertEqual(progress, [(0.0, False), (0.3333, False), (0.6667, False)])
        self.assertEqual((one.progress, one.complete), (1.0, True))

    def test_cutForTheModelInUse(self) -> None:
        small = msgspec.structs.replace(MODEL, core=5, context=0)
        one = job("a", windows=1)
        one.cut_for(small)
        self.assertEqual(len(one.waiting), len(cut(one.transcript.frames, RATE, 5, 0)))
        self.assertGreater(len(one.waiting), 1)
