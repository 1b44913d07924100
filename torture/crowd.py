"""All clients of one run: two who write to each other, and a stranger; then calm."""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, gatherResults

from tests.speech import STEADY, texts
from torture.clients import Actor, Sender, Stranger, Taker, sound
from torture.evidence import leftovers, rows
from torture.ledger import Recording
from torture.rig import RETRY, Over, Rig, tell

PARTIES = ("anna", "bjorn")


class Crowd:
    """The clients of one run.

    :ivar inboxes: by party: what it is to take.
    """

    def __init__(self, rig: Rig, most: int = 30) -> None:
        self._rig = rig
        self.inboxes: dict[str, deque[Recording]] = {party: deque() for party in PARTIES}
        self._senders = [Sender(rig, party, self.inboxes, most) for party in PARTIES]
        self._takers = [Taker(rig, party, self.inboxes[party]) for party in PARTIES]
        self._stranger = Stranger(rig)
        self._running: list[Deferred[None]] = []
        self._sending: list[Deferred[None]] = []
        self._guests: list[Sender] = []

    def start(self) -> None:
        """Let them all begin."""
        self._sending = [self._begin(actor) for actor in (*self._senders, self._stranger)]
        self._running = [self._begin(actor) for actor in self._takers]

    def sender(self, party: str) -> Sender:
        """A sender that a fault has to itself; its expiring messages are looked after."""
        sender = Sender(self._rig, party, self.inboxes, 0)
        self._guests.append(sender)
        return sender

    def deliver(self, recording: Recording) -> None:
        """Its sides are to take it."""
        for party in recording.sides:
            self.inboxes[party].append(recording)

    def _begin(self, actor: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(actor.run()).addErrback(self._ended_early)

    def _ended_early(self, failure: Any) -> None:
        if not failure.check(Over):
            self._rig.ledger.broken(f"a client stumbled: {failure.getTraceback()}")

    async def settle(self, patience: float) -> None:
        """The daemon runs undisturbed: everything must come to its end in time."""
        calm = Deferred.fromCoroutine(self._calm())
        try:
            await calm.addTimeout(patience, self._rig.reactor)
        except (TimeoutError, CancelledError):
            self._rig.ledger.notes.append(f"not settled within {patience:g} s")
        except Over:
            pass
        try:
            standing = Deferred.fromCoroutine(self._stand())
            await standing.addTimeout(patience, self._rig.reactor)
        except (TimeoutError, CancelledError):
            self._rig.ledger.broken("the daemon does not answer any more")
        await self._rig.stop()
        self._rig.over = True
        await gatherResults([*self._sending, *self._running])
        self._examine()
        await self._rig.no_orphans()

    async def _calm(self) -> None:
        for sender in self._senders:
            sender.closing = True
        self._stranger.closing = True
        await _all(self._sending)
        for guest in self._guests:
            guest.closing = True
            await guest.run()
        for taker in self._takers:
            taker.closing = True
        await _all(self._running)
        # What was never heard to be accepted may be so all the same.
        for party in PARTIES:
            actor = Actor(self._rig, party)
            while found := self._rig.ledger.listed(party, await actor.ask(type="list")):
                for recording in found:
                    if recording.short:
                        await self._rig.pause(RETRY)
                    else:
                        await actor.take(recording)

    async def _stand(self) -> None:
        """How everything stands in the end."""
        actors = {party: Actor(self._rig, party) for party in PARTIES}
        for recording in self._rig.ledger.recordings.values():
            if recording.accepted and recording.owner in actors:
                answer = await actors[recording.owner].ask(type="status", id=recording.id)
                self._rig.ledger.standing(recording, answer)

    def _examine(self) -> None:
        rig = self._rig
        said = [texts()[name] for name in STEADY]
        sounds = [_loud(sound(name)) for name in STEADY]
        rig.ledger.leftovers(leftovers(rig.state, [*(t.encode() for t in said), *sounds]))
        rig.ledger.rows(rows(rig.state))
        if any(text in rig.logs for text in said):
            rig.ledger.broken("the log holds a text")


def _loud(audio: bytes) -> bytes:
    """Some bytes from the middle of a sound that are no silence."""
    samples = memoryview(audio).cast("h")
    peak = max(range(len(samples)), key=lambda at: abs(samples[at]))
    return audio[2 * peak : 2 * peak + 64]


async def _all(running: list[Deferred[None]]) -> None:
    """Come back when all have ended; they go on where this is cancelled."""
    for one in running:
        done: Deferred[None] = Deferred()
        one.addCallback(tell, done)
        await done
