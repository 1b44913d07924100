"""The time of day for what is stored, steady for as long as the daemon runs.

A machine's clock may be set, by hand or by NTP. Expiry counts seconds that pass, so that a
transcript lives as long as it was promised: when the clock is set, what is stored is moved along.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TOLERANCE = 2.0
"""Seconds; less is NTP slowing or speeding the clock, and is followed without a word."""


def steady() -> float:
    """Seconds since the machine was started, those in which it slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Reading:
    """How the machine's clock stands.

    :ivar boot: which start of the machine this is: the seconds that pass are counted from it.
    :ivar offset: the time of day at that start, by the clock as it is now, seconds since the epoch.
    """

    boot: str
    offset: float

    def moved_since(self, earlier: Reading) -> float:
        """By how many seconds the clock was set meanwhile; 0 where that cannot be known."""
        moved = self.offset - earlier.offset if self.boot == earlier.boot else 0.0
        return moved if abs(moved) > TOLERANCE else 0.0


def this_boot() -> str:
    """A name of this start of the machine; see random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


class Calendar:
    """Keeps the time of day.

    :param wall: the machine's clock, seconds since the epoch, which may be set.
    :param passed: seconds that pass, whatever the clock says.
    :param boot: what they are counted from.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        passed: Callable[[], float] = steady,
        boot: Callable[[], str] = this_boot,
    ) -> None:
        self._wall = wall
        self._passed = passed
        self._boot = boot()
        self._offset = wall() - passed()

    @property
    def reading(self) -> Reading:
        """How the clock stood at the last :meth:`step`."""
        return Reading(self._boot, self._offset)

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
