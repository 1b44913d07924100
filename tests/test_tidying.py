"""A worker's memory, given back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from transcribed.tidying import AFTER, Tidying, give_back

CHUNK, CHUNKS = 100_000, 1000


def resident() -> int:
    """Bytes of this process's memory, see proc(5)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


class TidyingTests(SynchronousTestCase):
    def test_when(self) -> None:
        clock = Clock()
        runs: list[Callable[[], object]] = []
        tidying = Tidying(clock, runs.append)
        for _ in range(3):
            self.assertEqual(clock.getDelayedCalls(), [])
            tidying.used()
            clock.advance(AFTER / 2)
            tidying.used()
            self.assertEqual(runs, [])
            clock.advance(AFTER / 2)
            (run,) = runs
            run()
            runs.clear()
        tidying.used()
        for _ in range(2):
            tidying.stop()
            self.assertEqual(clock.getDelayedCalls(), [])

    def test_what(self) -> None:
        """Memory that is free, though there is some in use behind it."""
        chunks = [os.urandom(CHUNK) for _ in range(CHUNKS)]
        del chunks[::2]
        last = chunks[-1]
        before = resident()
        del chunks
        give_back(0)
        self.assertGreater(before - resident(), CHUNK * CHUNKS // 4)
        self.assertEqual(len(last), CHUNK)
