"""The queue: its bound, whose turn it is, retries, removal."""

from __future__ import annotations

from collections import Counter

from tests.fakes import MODEL
from tests.schedulercase import BATCHING, RATE, SchedulerTestCase, job, name, result
from transcribed.errors import Busy
from transcribed.job import Dealt
from transcribed.recognition import cut
from transcribed.scheduler import (
    MAX_TRIES,
    OLDEST_TURN,
    RETRY_FULL_QUEUE,
    Scheduler,
    share,
)


class BoundTests(SchedulerTestCase):
    """The most recordings at once."""

    def setUp(self) -> None:
        self.scheduler = Scheduler(2)
        self.scheduler.use(self.model)

    def refused(self) -> float | None:
        """By whoever comes."""
        error: Busy = self.assertRaises(Busy, self.scheduler.open, job("x", "eva", open=True))
        self.assertEqual(error.reason, "the queue is full")
        self.assertIs(self.scheduler.get("x"), None)
        return error.retry_after

    def test_uploadsCount(self) -> None:
        self.scheduler.open(job("a", open=True))
        self.scheduler.open(job("b", "bjorn", open=True))
        self.assertEqual(self.refused(), RETRY_FULL_QUEUE)
        self.scheduler.remove("a")
        self.scheduler.open(job("c", open=True))
        self.refused()
        self.scheduler.remove("b")
        self.scheduler.remove("c")
        self.assertNothingLeft()

    def test_recordingsCountUntilTheyAreTakenOut(self) -> None:
        self.add(job("a"))
        self.scheduler.open(job("b", "bjorn", open=True))
        self.refused()
        # Dealt out is not out.
        self.deal()
        self.refused()
        self.scheduler.remove("a")
        self.scheduler.open(job("c", open=True))
        self.refused()

    def test_anUploadKeepsItsPlace(self) -> None:
        for key, owner in (("a", "anna"), ("b", "bjorn")):
            one = job(key, owner, open=True)
            self.scheduler.open(one)
            self.scheduler.accept(one, job(key, owner).transcript)
        self.refused()
        self.assertEqual(len(self.scheduler), 2)

    def refusedFor(self, owner: str) -> None:
        error: Busy = self.assertRaises(Busy, self.scheduler.open, job("x", owner, open=True))
        self.assertEqual(error.reason, "your share of the queue is full")
        self.assertEqual(error.retry_after, RETRY_FULL_QUEUE)
        self.assertIs(self.scheduler.get("x"), None)

    def test_anOwnersShareIsHalf(self) -> None:
        self.scheduler = Scheduler(7)
        self.add(job("a"), job("b"))
        self.scheduler.open(job("c", open=True))
        self.refusedFor("anna")
        for key in "def":
            self.scheduler.open(job(key, "bjorn", open=True))
        self.refusedFor("bjorn")
        self.assertEqual(self.scheduler.refusing(), None, "others are served")
        self.scheduler.open(job("g", "eva", open=True))
        self.refused()
        self.scheduler.remove("g")
        self.scheduler.remove("a")
        self.scheduler.open(job("h", open=True))
        self.refusedFor("anna")

    def test_aShareIsOnePlaceAtLeast(self) -> None:
        self.assertEqual([share(n) for n in (1, 2, 3, 4, 5, 10_000)], [1, 1, 1, 2, 2, 5000])

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
