"""Who waits for what becomes of a transcript, how many may, and who is woken when."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from transcribed.errors import Busy
from transcribed.tally import Tally

MAX_WAITING_OF_PARTY, RETRY_WAITING = 10_000, 10.0
"""So many fetches of one party may wait, and how soon one more may be tried, in seconds."""

T = TypeVar("T")
Name = tuple[str, str]
"""A transcript's owner and id."""


class Waits:
    """All fetches that wait, on all connections."""

    def __init__(self) -> None:
        # The party, where it waits for an upload; None where it waits for what is stored.
        self._waits: dict[Name, dict[Deferred[None], str | None]] = {}
        self._of_party = Tally()

    def __len__(self) -> int:
        """How many there are."""
        return self._of_party.total()

    def check(self, party: str) -> None:
        """Raise :exc:`Busy` where no more of that party's may wait."""
        if self._of_party[party] >= MAX_WAITING_OF_PARTY:
            raise Busy("too many of your fetches are waiting", RETRY_WAITING)

    def counted(self, party: str, outcome: Deferred[T]) -> Deferred[T]:
        """Count a fetch of that party until it has its outcome; answers with that."""
        self._of_party[party] += 1

        def over(result: T | Failure) -> T | Failure:
            self._of_party.less(party)
            return result

        return outcome.addBoth(over)

    def change(self, name: Name, uploading: str | None) -> Deferred[None]:
        """Fires when there may be an outcome; cancel it to wait no more.

        :param uploading: the party, where it waits for an upload and nothing is stored.
        """
        change: Deferred[None] = Deferred(lambda change: self._forget(name, change))
        self._waits.setdefault(name, {})[change] = uploading
        return change

    def wake(self, name: Name) -> None:
        """The transcript has its outcome: all look again."""
        self._wake(name, list(self._waits.get(name, {})))

    def wake_uploads(self, name: Name, is_open: Callable[[str], bool]) -> None:
        """An upload is over: those look again who waited for it, and for no other.

        :param is_open: whether a party is still a side of an upload of that name.
        """
        waits = self._waits.get(name, {})
        lost = {party for party in waits.values() if party is not None}
        lost = {party for party in lost if not is_open(party)}
        self._wake(name, [change for change, party in waits.items() if party in lost])

    def _wake(self, name: Name, changes: Iterable[Deferred[None]]) -> None:
        for change in changes:
            # One that was woken may have ended others.
            if change in self._waits.get(name, {}):
                self._forget(name, change)
                change.callback(None)

    def _forget(self, name: Name, change: Deferred[None]) -> None:
        waits = self._waits[name]
        del waits[change]
        if not waits:
            del self._waits[name]
