"""What a fault is: how its daemon is started, and what is done to it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torture.crowd import Crowd
from torture.rig import Rig


class Fault(ABC):
    """One kind of fault.

    :ivar name: for the table and for ``--only``.
    :ivar options: of the daemon.
    :ivar workers: how many the daemon has where the run is not quick: each takes seconds to start.
    :ivar patience: seconds until everything must have come to its end, once the fault is over.
    :ivar internal: whether the fault may lead to `internal` errors.
    :ivar in_quick: whether it is in the quick run.
    """

    name = ""
    options: tuple[str, ...] = ()
    workers = 1
    patience = 90.0
    internal = False
    in_quick = True

    def missing(self) -> str | None:
        """Why it cannot be injected on this machine."""
        return None

    def prepare(self, rig: Rig) -> None:  # noqa: B027  (few need to)
        """Before the first daemon is started."""

    @abstractmethod
    async def inject(self, rig: Rig, crowd: Crowd) -> None:
        """Do harm, while clients are at work. The daemon runs when it is over."""

    def clean(self, rig: Rig) -> None:  # noqa: B027  (few need to)
        """After the last daemon has ended."""
