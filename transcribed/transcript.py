"""One transcript's life: its states, its two sides, what was given to whom, and until when.

Pure rules over a frozen record; time is a parameter, in seconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from transcribed.errors import Gone, NotFetched, UnknownId


class State(StrEnum):
    """Where a transcript is on its way, as the wire names it."""

    UPLOADING = "uploading"
    QUEUED = "queued"
    TRANSCRIBING = "transcribing"
    READY = "ready"
    FAILED = "failed"
    PURGED = "purged"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


UNFINISHED = (State.QUEUED, State.TRANSCRIBING)
"""Accepted, and the text is not there yet."""
FINISHED = (State.READY, State.FAILED)
"""There is something to be given to the sides."""
ENDED = (State.PURGED, State.CANCELLED, State.EXPIRED)
"""Audio and text are deleted; only the name is left."""

MIN_MEMORY = 60.0
"""For at least so many seconds the name of an expired transcript is kept."""

_WHY_GONE = {
    State.PURGED: "the transcript was given to all its sides and is deleted",
    State.CANCELLED: "the transcript was cancelled and is deleted",
    State.EXPIRED: "the transcript has expired and is deleted",
}


@dataclass(frozen=True)
class Sides:
    """A mark on each of the two sides. With one side only, both marks go together."""

    owner: bool = False
    receiver: bool = False


@dataclass(frozen=True)
class Transcript:
    """What is known of one recording and its text, the audio and the text themselves apart.

    :ivar key: names its files in the spool.
    :ivar receiver: the party that is to be given the text; the owner where there is one side.
    :ivar rate: frames a second, Hz.
    :ivar frames: how many frames the recording has.
    :ivar sha256: hex digest of its audio bytes.
    :ivar language: what the recording is to be transcribed as.
    :ivar created: when it was accepted.
    :ivar expires: when audio and text are deleted at the latest.
    :ivar forget: when its name is deleted; None while it has not ended.
    :ivar sent: to which sides the text was sent at least once.
    :ivar given: which sides have acked.
    :ivar model: what transcribed it; None before.
    :ivar reason: why it failed; None otherwise.
    """

    key: str
    owner: str
    id: str
    receiver: str
    rate: int
    channels: int
    frames: int
    sha256: str
    language: str
    state: State
    created: float
    expires: float
    forget: float | None = None
    sent: Sides = Sides()
    given: Sides = Sides()
    model: str | None = None
    reason: str | None = None

    @property
    def seconds(self) -> float:
        """The recording's duration."""
        return round(self.frames / self.rate, 3)

    def same_recording(self, other: Transcript) -> bool:
        """Whether `other` is the same submission, sent again."""
        return (self.owner, self.id, self.receiver, self.rate, self.channels, self.sha256) == (
            other.owner,
            other.id,
            other.receiver,
            other.rate,
            other.channels,
            other.sha256,
        )

    def seen_by(self, party: str, now: float) -> Transcript:
        """The transcript as `party` may see it now.

        Raises :exc:`UnknownId` when the party is not one of its sides, or when it is forgotten.
        """
        if party not in (self.owner, self.receiver):
            raise UnknownId
        if self.forget is not None and self.forget <= now:
            raise UnknownId
        # The purge comes by only so often; what is past its time is gone all the same.
        return self.expire(now) if self.expires <= now else self

    def present(self) -> Transcript:
        """Itself; raises :exc:`Gone` when its text and audio are deleted."""
        if self.state in ENDED:
            raise Gone(_WHY_GONE[self.state])
        return self

    def _mark(self, marks: Sides, party: str) -> Sides:
        return Sides(
            owner=marks.owner or party == self.owner,
            receiver=marks.receiver or party == self.receiver,
        )

    def _is_marked(self, marks: Sides, party: str) -> bool:
        return marks.owner if party == self.owner else marks.receiver

    def has_acked(self, party: str) -> bool:
        """Whether this side has said that it has the text."""
        return self._is_marked(self.given, party)

    def send_to(self, party: str) -> Transcript:
        """The outcome is being sent to a side; raises :exc:`Gone` when that side has acked."""
        self.present()
        if self.has_acked(party):
            raise Gone("the transcript was given to you: you have acked it")
        if self.state not in FINISHED:
            return self
        return replace(self, sent=self._mark(self.sent, party))

    def acknowledge(self, party: str) -> Transcript:
        """A side says that it has the text; when both have, the transcript is purged.

        Harmless when repeated, also later. Raises :exc:`NotFetched` when nothing was sent to that
        side, :exc:`Gone` when nothing ever will be.
        """
        if self.has_acked(party):
            return self
        sent = self._is_marked(self.sent, party)
        if self.state is State.CANCELLED or not sent:
            self.present()
        if not sent:
            raise NotFetched
        given = self._mark(self.given, party)
        acked = replace(self, given=given)
        if given.owner and given.receiver and self.state in FINISHED:
            return replace(acked, state=State.PURGED, forget=self.expires)
        return acked

    def cancel(self) -> Transcript:
        """Deleted by its owner's wish; what has ended already stays as it ended."""
        if self.state in ENDED:
            return self
        return replace(self, state=State.CANCELLED, forget=self.expires)

    def expire(self, now: float) -> Transcript:
        """Its time is over. Its name is kept for as long again, to tell late requests."""
        if self.state in ENDED:
            return self
        memory = max(self.expires - self.created, MIN_MEMORY)
        return replace(self, state=State.EXPIRED, forget=now + memory)


@dataclass(frozen=True)
class Change:
    """A transcript before and after something was asked of it."""

    before: Transcript
    after: Transcript

    @property
    def moved(self) -> bool:
        """Whether its state is another."""
        return self.before.state is not self.after.state
