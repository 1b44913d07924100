"""The time of day for what is stored, steady for as long as the daemon runs.

A machine's clock may be set, by hand or by NTP. Expiry counts seconds that pass, so that a
transcript lives as long as it was promised: when the clock is set, what is stored is moved along.
"""

from __future__ import annotations

import time
from collections.abc import Callable

TOLERANCE = 2.0
"""Seconds; less is NTP slowing or speeding the clock, and is followed without a word."""


def steady() -> float:
    """Seconds since the machine was started, those in which it slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Calendar:
    """Keeps the time of day.

    :param wall: the machine's clock, seconds since the epoch, which may be set.
    :param passed: seconds that pass, whatever the clock says.
    """

    def __init__(
        self, wall: Callable[[], float] = time.time, passed: Callable[[], float] = steady
    ) -> None:
        self._wall = wall
        self._passed = passed
        self._offset = wall() - passed()

    def now(self) -> float:
        """The time of day as of the last :meth:`step`, seconds since the epoch."""
        return self._passed() + self._offset

    def step(self) -> float:
        """Follow the machine's clock; answers by how many seconds it was set, mostly 0."""
        offset = self._wall() - self._passed()
        moved, self._offset = offset - self._offset, offset
        return moved if abs(moved) > TOLERANCE else 0.0

    def undo(self, moved: float) -> None:
        """A step could not be followed: the next one will say it again."""
        self._offset -= moved
