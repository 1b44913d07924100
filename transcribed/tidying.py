"""Memory that is not used goes back to the system.

glibc's malloc(3) keeps what is freed, and scatters what comes next among it. A worker that was busy
would hold several times what it needs, as torch's tensors are of other sizes for each window, and
the daemon would grow by a page now and then. Malloc's own settings against that make each window
slower; this is a hundredth of a second, now and then (docs/design.rst).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

AFTER = 30.0
"""Seconds from the first use to the tidying."""

give_back: Callable[[int], object] = getattr(ctypes.CDLL(None), "malloc_trim", lambda keep: None)
"""glibc's malloc_trim(3), called with 0; does nothing with another C library."""


class Tidying:
    """Gives memory back some time after it was used; never where nothing was used.

    :param run: runs what it is given where it disturbs nobody.
    """

    def __init__(self, clock: IReactorTime, run: Callable[[Callable[[], object]], object]) -> None:
        self._clock = clock
        self._run = run
        self._due: IDelayedCall | None = None

    def used(self) -> None:
        """Memory was used just now."""
        if self._due is None:
            self._due = self._clock.callLater(AFTER, self._tidy)

    def stop(self) -> None:
        """Do nothing more."""
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _tidy(self) -> None:
        self._due = None
        self._run(lambda: give_back(0))
