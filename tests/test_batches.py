"""Short windows that go together, and what a poisoned one costs its neighbours."""

from __future__ import annotations

from collections import Counter

import msgspec

from tests.fakes import MODEL
from tests.schedulercase import BATCHING, SchedulerTestCase, job
from transcribed.scheduler import (
    MAX_BATCH,
    MAX_TRIES,
)


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
