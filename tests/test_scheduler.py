"""The queue: its bound, whose turn it is, batches, retries, uploads, removal, earlier results."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
from twisted.trial.unittest import SynchronousTestCase

import transcribed.job
from tests.fakes import MODEL
from transcribed.errors import Busy
from transcribed.job import Dealt, Job
from transcribed.recognition import Model, StoredWindow, Window, Word, WordsResult, cut
from transcribed.scheduler import (
    MAX_BATCH,
    MAX_TRIES,
    OLDEST_TURN,
    RETRY_FULL_QUEUE,
    Scheduler,
)
from transcribed.transcript import State, Transcript

RATE = 8000
BATCHING = msgspec.structs.replace(MODEL, batch=30.0)


def result(*words: str) -> WordsResult:
    return WordsResult([Word(word, 0.0, 1.0, 1.0) for word in words])


def job(
    key: str,
    owner: str = "anna",
    windows: int = 1,
    seconds: float | None = None,
    stored: list[StoredWindow] | None = None,
    language: str = "sv",
    open: bool = False,
) -> Job:
    """A recording that `MODEL` cuts into so many windows, or of so many seconds."""
    if seconds is None:
        seconds = MODEL.core * windows + MODEL.context
        assert len(cut(int(seconds) * RATE, RATE, MODEL.core, MODEL.context)) == windows
    transcript = Transcript(
        key=key,
        owner=owner,
        id=key,
        receiver=owner,
        rate=RATE,
        channels=1,
        frames=0 if open else int(seconds * RATE),
        sha256="",
        language=language,
        state=State.UPLOADING if open else State.QUEUED,
        created=0.0,
        expires=1.0,
    )
    return Job(transcript, Path(f"/spool/{key}.audio"), stored or [], open)


def name(dealt: Dealt) -> str:
    """A window's recording and its position."""
    return f"{dealt.job.key}{dealt.window.position}"


class SchedulerTestCase(SynchronousTestCase):
    """Has a scheduler, and at the end nothing must be left in it that was taken out."""

    model: Model = MODEL

    def setUp(self) -> None:
        self.scheduler = Scheduler(100)
        self.scheduler.use(self.model)

    def add(self, *jobs: Job) -> None:
        for each in jobs:
            self.scheduler.add(each)

    def batch(self, idle: int = 1) -> list[str]:
        """The next batch, by names."""
        return [name(dealt) for dealt in self.scheduler.next(idle)]

    def deal(self) -> Dealt:
        """The next window, which there must be, alone."""
        (dealt,) = self.scheduler.next(1)
        return dealt

    def dealt(self, most: int = 1000) -> list[str]:
        """What is dealt out from now on, one by one."""
        names: list[str] = []
        while len(names) < most and (batch := self.batch()):
            self.assertEqual(len(batch), 1)
            names += batch
        return names

    def finish(self, *batch: Dealt) -> None:
        """They are transcribed, and recordings that are complete are taken out."""
        for dealt in batch:
            self.scheduler.done(dealt, result())
            if dealt.job.complete:
                self.scheduler.remove(dealt.job.key)

    def assertNothingLeft(self) -> None:
        self.assertEqual(len(self.scheduler), 0)
        self.assertEqual(self.scheduler._jobs, {})
        self.assertEqual(self.scheduler._owners, {})
        self.assertEqual(self.scheduler.due(), [])
        self.assertEqual(self.scheduler.next(1), [])


class BoundTests(SchedulerTestCase):
    """The most recordings at once."""

    def setUp(self) -> None:
        self.scheduler = Scheduler(2)
        self.scheduler.use(self.model)

    def refused(self) -> float | None:
        error: Busy = self.assertRaises(Busy, self.scheduler.open, job("x", open=True))
        self.assertIs(self.scheduler.get("x"), None)
        return error.retry_after

    def test_uploadsCount(self) -> None:
        self.scheduler.open(job("a", open=True))
        self.scheduler.open(job("b", open=True))
        self.assertEqual(self.refused(), RETRY_FULL_QUEUE)
        self.scheduler.remove("a")
        self.scheduler.open(job("c", open=True))
        self.refused()
        self.scheduler.remove("b")
        self.scheduler.remove("c")
        self.assertNothingLeft()

    def test_recordingsCountUntilTheyAreTakenOut(self) -> None:
        self.add(job("a"))
        self.scheduler.open(job("b", open=True))
        self.refused()
        # Dealt out is not out.
        self.deal()
        self.refused()
        self.scheduler.remove("a")
        self.scheduler.open(job("c", open=True))
        self.refused()

    def test_anUploadKeepsItsPlace(self) -> None:
        for key in ("a", "b"):
            one = job(key, open=True)
            self.scheduler.open(one)
            self.scheduler.accept(one, job(key).transcript)
        self.refused()
        self.assertEqual(len(self.scheduler), 2)

    def test_whatWasAcceptedIsNeverRefused(self) -> None:
        self.add(*(job(key) for key in "abcd"))
        self.assertEqual(len(self.scheduler), 4)
        self.refused()
        self.assertEqual(self.dealt(), ["a0", "b0", "c0", "d0"])

    def test_lengthIsOfWhatWasAccepted(self) -> None:
        self.scheduler.open(job("a", open=True))
        self.assertEqual(len(self.scheduler), 0)


class OwnersTests(SchedulerTestCase):
    """Whose window is next: between owners."""

    def test_nothing(self) -> None:
        self.assertEqual(self.scheduler.next(1), [])

    def test_theyTakeTurns(self) -> None:
        self.add(job("a", "anna", 3), job("b", "bjorn", 3), job("c", "cecilia", 3))
        self.assertEqual(self.dealt(), ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"])

    def test_aShortMessageWaitsForNobodysBacklog(self) -> None:
        """Whatever ten others have waiting and in work, and whoever of them was served last."""
        owners = [f"owner {i}" for i in range(10)]
        self.add(*(job(f"{owner}-", owner, 50) for owner in owners))
        for newcomer in range(40):
            self.add(job("new", f"newcomer {newcomer}", seconds=5))
            self.assertEqual(self.dealt(1), ["new0"], newcomer)
            self.scheduler.remove("new")
            self.dealt(1)

    def test_aNewOwnersLongRecordingWaitsForItsTurn(self) -> None:
        self.add(job("a", "anna", 50))
        self.assertEqual(self.dealt(3), ["a0", "a1", "a2"])
        self.add(job("b", "bjorn", 4))
        self.assertEqual(self.dealt(4), ["b0", "a3", "b1", "a4"])

    def test_aFloodBuysNoTurns(self) -> None:
        self.add(*(job(f"a{i}-", "anna") for i in range(50)), job("b", "bjorn", 20))
        dealt = Counter(name[0] for name in self.dealt(30))
        self.assertLessEqual(abs(dealt["a"] - dealt["b"]), 2)

    def test_sharesAreOfSeconds(self) -> None:
        """However an owner's audio is cut; the bound is that of the paper's theorem 1."""
        self.add(*(job(f"a{i:02}-", "anna", seconds=4) for i in range(200)))
        self.add(*(job(f"b{i:02}-", "bjorn", seconds=13) for i in range(60)))
        self.add(job("c", "cecilia", 30))
        longest = {"anna": 4.0, "bjorn": 13.0, "cecilia": 26.0}
        seconds = dict.fromkeys(longest, 0.0)
        for _ in range(150):
            dealt = self.deal()
            seconds[dealt.job.transcript.owner] += dealt.seconds
            for one in longest:
                for other in longest:
                    self.assertLessEqual(
                        abs(seconds[one] - seconds[other]), longest[one] + longest[other]
                    )

    def test_whoHasWorkersGoesAfterWhoHasNone(self) -> None:
        self.add(job("a", "anna", 2))
        in_work = [self.deal(), self.deal()]
        self.add(job("b", "anna"), job("c", "bjorn"))
        self.assertEqual(self.dealt(1), ["c0"])
        self.finish(*in_work)
        self.assertEqual(self.dealt(), ["b0"])

    def test_nothingIsHeldAgainstWhoComesBack(self) -> None:
        """What an owner was dealt while nobody waited does not count later."""
        self.add(job("a", "anna", 50))
        while batch := self.scheduler.next(1):
            self.finish(*batch)
        self.add(job("b", "bjorn", 20), job("c", "anna", 20))
        self.assertEqual(self.dealt(4), ["b0", "c0", "b1", "c1"])

    def test_newcomersWithoutEndStarveNobody(self) -> None:
        """Neither a longer first window than theirs, nor an owner's second window."""
        self.add(job("long", "anna", seconds=20), job("m", "bjorn", 30))
        served: Counter[str] = Counter()
        for i in range(600):
            while len(self.scheduler) < 6:
                self.add(job(f"n{len(served)}-{i}-{len(self.scheduler)}", f"new {i}", seconds=8))
            dealt = self.deal()
            served[dealt.job.transcript.owner] += 1
            self.finish(dealt)
            if dealt.job.complete:
                self.scheduler.remove(dealt.job.key)
        self.assertEqual(served["anna"], 1)
        self.assertGreater(served["bjorn"], 5)

    def test_tagsAreForgottenOnceTheyArePassed(self) -> None:
        self.add(job("z", "zeus", 100))
        for i in range(50):
            self.add(job("a", f"owner {i}", seconds=5))
            self.assertEqual(self.dealt(2), ["a0", f"z{i}"])
            self.scheduler.remove("a")
            self.assertLess(len(self.scheduler._owners), 8)

    def test_tagsAreBoundedWhileNewOwnersKeepComing(self) -> None:
        """One always waits, and all are new: virtual time stands still."""
        self.scheduler.limit = 5
        self.add(job("0", "owner 0", seconds=5))
        for i in range(100):
            self.add(job(str(i + 1), f"owner {i + 1}", seconds=5))
            self.finish(self.deal())
            self.assertLessEqual(len(self.scheduler._owners), 7)
        self.finish(self.deal())
        self.assertNothingLeft()


class RecordingsTests(SchedulerTestCase):
    """Whose window is next: between one owner's recordings."""

    def test_windowsInOrder(self) -> None:
        self.add(job("a", windows=4))
        self.assertEqual(self.dealt(), ["a0", "a1", "a2", "a3"])
        self.assertEqual(len(self.scheduler), 1)

    def test_windowsAreThoseOfTheCut(self) -> None:
        one = job("a", windows=3)
        self.add(one)
        windows = [self.deal().window for _ in range(3)]
        frames = one.transcript.frames
        self.assertEqual(windows, cut(frames, RATE, MODEL.core, MODEL.context))

    def test_aShortOneOvertakes(self) -> None:
        self.add(job("a", windows=6), job("b", windows=2), job("c"))
        self.assertEqual(self.dealt(3), ["c0", "b0", "b1"])
        # The fourth turn is the oldest one's.
        self.assertEqual(self.dealt(2), ["a0", "a1"])
        self.add(job("d"))
        self.assertEqual(self.dealt(), ["d0", "a2", "a3", "a4", "a5"])

    def test_equallyLongOnesInOrder(self) -> None:
        self.add(job("a"), job("b"), job("c"))
        self.assertEqual(self.dealt(), ["a0", "b0", "c0"])

    def test_whatIsLeftCounts(self) -> None:
        self.add(job("a", windows=6))
        self.dealt(5)
        self.add(job("b", windows=2))
        self.assertEqual(self.dealt(), ["a5", "b0", "b1"])

    def test_aFloodOfShortOnesStarvesNone(self) -> None:
        self.assertEqual(OLDEST_TURN, 4)
        self.add(job("long", windows=8))
        order = ""
        for i in range(32):
            self.add(job(f"short{i}-", seconds=2), job(f"short{i}+", seconds=2))
            order += name(self.deal())[0]
        self.assertEqual(order, "sssl" * 8)


class BatchTests(SchedulerTestCase):
    """Short windows that wait together go together."""

    model = BATCHING

    def short(self, number: int, owner: str = "anna", seconds: float = 5) -> None:
        self.add(*(job(f"{owner[0]}{i}-", owner, seconds=seconds) for i in range(number)))

    def test_asManyAsFitIn(self) -> None:
        self.short(8)
        self.assertEqual(self.batch(), [f"a{i}-0" for i in range(6)])
        self.assertEqual(self.batch(), ["a6-0", "a7-0"])
        self.assertEqual(self.batch(), [])

    def test_oneThatDoesNotFitInIsPassedBy(self) -> None:
        self.add(job("a", seconds=8), job("b", seconds=10), job("c", "bjorn", seconds=25))
        self.assertEqual(self.batch(), ["a0", "b0"])
        self.assertEqual(self.batch(), ["c0"])

    def test_byTheSameOrder(self) -> None:
        """Owners take turns, and the shortest of each comes first."""
        self.add(job("a", seconds=7), job("b", seconds=6), job("c", seconds=5))
        self.add(job("d", "bjorn", seconds=5), job("e", "bjorn", seconds=4))
        self.assertEqual(self.batch(), ["e0", "c0", "d0", "b0", "a0"])

    def test_eachOwnerIsCharged(self) -> None:
        self.short(6, "anna")
        self.short(1, "bjorn")
        self.assertEqual(self.batch(), ["a0-0", "b0-0", "a1-0", "a2-0", "a3-0", "a4-0"])
        self.add(job("a", "anna", 20), job("b", "bjorn", 20))
        # Anna was given 25 seconds, Bjorn 5.
        batches = [self.batch() for _ in range(5)]
        self.assertEqual(batches, [["b0"], ["a5-0"], ["a0"], ["b1"], ["a1"]])

    def test_whoWaitsIsNotOvertakenByWhatGoesAlong(self) -> None:
        """A batch's later windows do not move virtual time: others still start before them."""
        self.add(job("l", "lars", 20))
        self.assertEqual(self.batch(), ["l0"])
        self.short(6)
        self.assertEqual(len(self.batch()), 6)
        self.add(job("n", "nora", 3), job("a", "anna", 2))
        # Nora starts now, Lars at 26 seconds, Anna at 30.
        self.assertEqual([self.batch()[0][0] for _ in range(4)], ["n", "l", "n", "a"])

    def test_neverWithLongWindows(self) -> None:
        self.scheduler.use(msgspec.structs.replace(MODEL, batch=20.0))
        self.add(job("l", "lars", 3))
        self.short(2, "anna", 20)
        self.short(2, "bjorn", 19)
        # Shorter than the limit is short, as long is not; the last window of Lars is not, either.
        batches = [self.batch() for _ in range(7)]
        self.assertEqual({len(batch) for batch in batches}, {1})
        self.assertEqual(self.batch(), [])

    def test_aLongWindowsTurnIsItsOwn(self) -> None:
        self.add(job("l", "lars", 3))
        self.assertEqual(self.batch(), ["l0"])
        self.scheduler.use(msgspec.structs.replace(MODEL, batch=20.0))
        self.assertEqual(self.batch(), ["l0"], "cut again for another model")
        self.short(2)
        self.assertEqual(self.batch(), ["a0-0", "a1-0"])
        self.add(job("b", "bjorn", seconds=25), job("c", "cecilia", seconds=2))
        self.assertEqual(self.batch(), ["c0"])
        self.assertEqual(self.batch(), ["b0"])

    def test_theEndOfALongRecordingIsShort(self) -> None:
        self.add(job("l", seconds=44))
        self.assertEqual(self.batch(), ["l0"])
        self.add(job("m", "bjorn", seconds=3))
        self.assertEqual(self.batch(), ["m0", "l1"])

    def test_inOneLanguage(self) -> None:
        self.add(job("a"), job("b", seconds=2), job("c", seconds=3, language="en"))
        self.add(job("d", seconds=4), job("e", "bjorn", seconds=5, language="en"))
        self.assertEqual(self.batch(), ["b0", "d0", "a0"])
        self.assertEqual(self.batch(), ["e0", "c0"])

    def test_noneWhereTheModelDoesNot(self) -> None:
        self.scheduler.use(MODEL)
        self.short(3)
        self.assertEqual([len(self.batch()) for _ in range(4)], [1, 1, 1, 0])

    def test_noWorkerIsLeftWithoutAWindow(self) -> None:
        for number, idle, sizes in (
            (5, 5, [1, 1, 1, 1, 1]),
            (3, 5, [1, 1, 1]),
            (5, 2, [3, 2]),
            (7, 4, [2, 2, 2, 1]),
            (6, 4, [2, 2, 1, 1]),
            (12, 2, [6, 6]),
        ):
            self.setUp()
            self.short(number)
            dealt: list[int] = []
            while batch := self.batch(max(1, idle - len(dealt))):
                dealt.append(len(batch))
            self.assertEqual(dealt, sizes, (number, idle))

    def test_longWindowsBesidesShortOnes(self) -> None:
        self.scheduler.use(msgspec.structs.replace(MODEL, batch=20.0))
        self.add(job("l", "lars", 3))
        self.short(3)
        # For two: the short ones are shared out, whoever else waits.
        self.assertEqual(self.batch(2), ["a0-0", "a1-0"])
        self.assertEqual(self.batch(1), ["l0"])
        self.assertEqual(self.batch(1), ["a2-0"])

    def test_theirNumberIsBounded(self) -> None:
        self.short(MAX_BATCH + 3, seconds=0.001)
        self.assertEqual([len(self.batch()) for _ in range(3)], [MAX_BATCH, 3, 0])

    def test_aBatchIsATurn(self) -> None:
        """The oldest recording's turn comes after so many batches, not windows."""
        self.add(job("l", windows=9))
        self.scheduler.use(msgspec.structs.replace(MODEL, batch=20.0))
        self.short(40)
        firsts = [self.batch()[0][0] for _ in range(8)]
        self.assertEqual(firsts, ["a", "a", "a", "l"] * 2)


class RetryTests(SchedulerTestCase):
    """Windows that failed, alone."""

    def fail_(self, dealt: Dealt) -> bool:
        return self.scheduler.failed(dealt, alone=True)

    def test_firstInItsRecording(self) -> None:
        self.add(job("a", windows=3))
        self.assertTrue(self.fail_(self.deal()))
        self.assertEqual(self.dealt(), ["a0", "a1", "a2"])

    def test_afterAllWasDealt(self) -> None:
        self.add(job("a", windows=2))
        first = self.deal()
        self.assertEqual(self.dealt(), ["a1"])
        self.assertTrue(self.fail_(first))
        self.assertEqual(self.dealt(), ["a0"])

    def test_othersStillHaveTheirTurns(self) -> None:
        self.add(job("a", "anna"), job("b", "bjorn", seconds=23))
        self.fail_(self.deal())
        self.assertEqual(self.dealt(), ["b0", "a0"])

    def test_endAfterThreeTries(self) -> None:
        self.assertEqual(MAX_TRIES, 3)
        self.add(one := job("a"))
        for expected in (True, True, False):
            self.assertIs(self.fail_(self.deal()), expected)
        self.assertEqual(self.scheduler.next(1), [])
        self.assertIs(self.scheduler.remove("a"), one)
        self.assertNothingLeft()

    def test_eachWindowHasItsOwnTries(self) -> None:
        self.add(job("a", windows=2))
        for _ in range(2):
            first, second = self.deal(), self.deal()
            self.assertTrue(self.fail_(second))
            self.assertTrue(self.fail_(first))
        first, second = self.deal(), self.deal()
        self.assertEqual((name(first), name(second)), ("a0", "a1"))
        self.assertFalse(self.fail_(second))

    def test_givenUp(self) -> None:
        self.add(one := job("a", windows=4))
        first, second = self.deal(), self.deal()
        self.scheduler.give_up(one, "poison")
        self.assertEqual(self.dealt(), [])
        self.assertFalse(self.scheduler.wants(first) or self.scheduler.wants(second))
        self.scheduler.remove("a")
        self.assertNothingLeft()


class PoisonTests(SchedulerTestCase):
    """A window that ends every worker, among others."""

    model = BATCHING

    def test_neighboursGoAloneThen(self) -> None:
        self.add(*(job(key, seconds=5) for key in "abc"))
        for dealt in self.scheduler.next(1):
            self.assertTrue(self.scheduler.failed(dealt, alone=False))
        self.add(job("d", seconds=6))
        self.assertEqual([len(self.scheduler.next(1)) for _ in range(4)], [1, 1, 1, 1])

    def test_itIsGivenUpAndTheyAreNot(self) -> None:
        """Wherever it is, and however many more come in meanwhile."""
        for poisoned in range(12):
            self.setUp()
            self.add(*(job(f"{i:02}", f"owner {i % 3}", seconds=3 + i % 4) for i in range(12)))
            alone: Counter[str] = Counter()
            done: set[str] = set()
            while batch := self.scheduler.next(1):
                keys = [dealt.job.key for dealt in batch]
                if f"{poisoned:02}" not in keys:
                    done |= set(keys)
                    self.finish(*batch)
                    continue
                if len(batch) == 1:
                    alone[keys[0]] += 1
                else:
                    self.add(job(f"more {len(done)} {sum(alone.values())}", seconds=1))
                for dealt in batch:
                    if not self.scheduler.failed(dealt, len(batch) == 1):
                        self.scheduler.give_up(dealt.job, "poison")
                        self.scheduler.remove(dealt.job.key)
            self.assertEqual(alone, {f"{poisoned:02}": MAX_TRIES})
            self.assertGreaterEqual(len(done), 12)
            self.assertNothingLeft()


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
        dealt = self.deal()
        self.assertTrue(self.scheduler.wants(dealt))
        self.scheduler.remove("a")
        self.assertFalse(self.scheduler.wants(dealt))
        self.assertNothingLeft()

    def test_withAllWindowsDealt(self) -> None:
        self.add(job("a", windows=2))
        self.dealt()
        self.scheduler.remove("a")
        self.assertNothingLeft()

    def test_waitingForARetry(self) -> None:
        self.add(job("a"))
        self.scheduler.failed(self.deal(), alone=True)
        self.scheduler.remove("a")
        self.assertNothingLeft()

    def test_complete(self) -> None:
        one = job("a", windows=2)
        self.add(one)
        for _ in range(2):
            self.scheduler.done(self.deal(), result("hej"))
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
        self.scheduler.use(BATCHING)
        for round_ in range(20):
            for number, owner in enumerate(("anna", "bjorn", "cecilia")):
                self.add(job(f"{round_}-{number}", owner, 1 + number))
                self.add(job(f"{round_}-{number}s", owner, seconds=3))
            if round_ % 3:
                continue
            while batch := self.scheduler.next(1 + round_ % 2):
                position = batch[0].window.position
                if (round_ + position) % 3:
                    self.finish(*batch)
                    continue
                for dealt in batch:
                    if not self.scheduler.failed(dealt, len(batch) == 1):
                        self.scheduler.remove(dealt.job.key)
        for key in list(self.scheduler._jobs):
            self.scheduler.remove(key)
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
