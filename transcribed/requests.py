"""What a conversation has at hand, and the requests that are no part of an upload."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from transcribed import answers, wire
from transcribed.auth import Admission, Mind
from transcribed.desk import Delivery, Desk, Waiting
from transcribed.errors import BadMessage, Busy, TranscribedError, Unauthenticated
from transcribed.interfaces import ISessionPeer
from transcribed.transcript import Transcript
from transcribed.waits import RETRY_WAITING

POLICY, INTERNAL = 1008, 1011
"""Close codes of RFC 6455, section 7.4.1."""
MAX_WAITING = 1000
"""So many fetches may wait on one connection."""
LISTED_AT_ONCE = 500
"""So many of a long list are written out before others have their turn: some 5 ms."""

Step = Coroutine[Any, Any, None]

_log = Logger()


@dataclass(frozen=True)
class Host:
    """What all sessions are given.

    :ivar admit: lets a client in, given its address, the party that it says it is, and its token;
        see :meth:`transcribed.auth.Doorkeeper.admit`.
    :ivar greeting: makes the answer to ``hello`` for a party.
    :ivar clock: for timers.
    :ivar hello_seconds: how long a client may take to say ``hello``.
    :ivar max_bad_messages: so many in a row end a connection.
    :ivar refused: is told the code of each error that is sent.
    """

    desk: Desk
    admit: Callable[[str | None, str | None, str | None, Mind], Awaitable[Admission]]
    greeting: Callable[[str], wire.Welcome]
    clock: IReactorTime
    hello_seconds: float = 10.0
    max_bad_messages: int = 10
    refused: Callable[[str], None] = lambda code: None


@dataclass
class Core:
    """What a conversation has at hand.

    :ivar party: who the client is, once that is known.
    :ivar leave: takes the party out again, once it is in.
    :ivar deadline: ends the wait for the ``hello``.
    :ivar bad_messages: how many came in a row.
    :ivar closed: whether it is over: nothing more is heard.
    :ivar unwatch: ends the subscription, if there is one.
    :ivar waiting: the fetches that wait for their text.
    :ivar answering: whether a request is being worked on.
    :ivar held: events that came meanwhile: they are told after the answer.
    :ivar step: what the last request still has to wait for, if anything.
    """

    host: Host
    peer: ISessionPeer
    party: str = ""
    leave: Callable[[], None] | None = None
    deadline: IDelayedCall | None = None
    bad_messages: int = 0
    closed: bool = False
    unwatch: Callable[[], None] | None = None
    waiting: set[Deferred[Delivery]] = field(default_factory=set)
    answering: bool = False
    held: list[wire.Event] = field(default_factory=list)
    step: Step | None = None

    @property
    def desk(self) -> Desk:
        """What a party can ask for."""
        return self.host.desk

    def expect_hello(self) -> None:
        """From now on the client has so long."""

        def late() -> None:
            self.deadline = None
            self.send_unauthenticated("hello did not come in time", None)

        self.deadline = self.host.clock.callLater(self.host.hello_seconds, late)

    def heard_hello(self) -> None:
        """It has come, or nobody waits for it any more."""
        deadline, self.deadline = self.deadline, None
        if deadline is not None:
            deadline.cancel()

    def dismiss(self, reason: str) -> None:
        """Its credentials are good no more; see :class:`transcribed.auth.Mind`."""
        self.leave = None
        if not self.closed:
            self.send_unauthenticated(reason, None)

    def tell(self, event: wire.Event) -> None:
        if self.answering:
            self.held.append(event)
        else:
            self.send(event)

    def send(self, answer: wire.Answer, ref: str | None = None) -> None:
        if isinstance(answer, wire.Error):
            self.host.refused(answer.code)
        self.peer.send(wire.render(wire.with_ref(answer, ref)))

    def send_bad(self, error: BadMessage, ref: str | None, id: str | None = None) -> None:
        self.bad_messages += 1
        self.send(answers.error(error, id=id), ref)
        if self.bad_messages >= self.host.max_bad_messages:
            self.close(POLICY, "too many bad messages")

    def send_unauthenticated(self, reason: str, ref: str | None) -> None:
        self.send(answers.error(Unauthenticated(reason)), ref)
        self.close(POLICY, reason)

    def close(self, code: int, reason: str) -> None:
        self.closed = True
        self.heard_hello()
        self.peer.close(code, reason)


def send_failure(
    core: Core, failure: Failure, ref: str | None, id: str | None, owner: str | None
) -> None:
    """Answer a request with what went wrong; what nobody foresaw ends the connection."""
    if isinstance(failure.value, TranscribedError):
        core.send(answers.error(failure.value, id=id, owner=owner), ref)
        return
    _log.failure("a request failed", failure)
    core.send(answers.error(TranscribedError("an internal error"), id=id, owner=owner), ref)
    core.close(INTERNAL, "internal error")


async def _fetch(core: Core, request: wire.Fetch) -> None:
    owner = request.owner or core.party
    answer = await core.desk.fetch(core.party, owner, request.id, request.wait)
    if isinstance(answer, Waiting):
        _deliver_later(core, request, owner, answer.outcome)
    elif isinstance(answer, Delivery):
        core.send(answers.delivered(answer), request.ref)
    else:
        core.send(answers.status(answer), request.ref)


def _ignore_cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)


def _deliver_later(
    core: Core, request: wire.Fetch, owner: str, outcome: Deferred[Delivery]
) -> None:
    if len(core.waiting) >= MAX_WAITING:
        outcome.addErrback(_ignore_cancelled)
        outcome.cancel()
        raise Busy("too many fetches are waiting on this connection", RETRY_WAITING)
    core.waiting.add(outcome)

    def answer(delivery: Delivery) -> None:
        core.send(answers.delivered(delivery), request.ref)

    def fail(failure: Failure) -> None:
        if not failure.check(CancelledError):
            send_failure(core, failure, request.ref, request.id, owner)

    outcome.addCallback(answer).addErrback(fail)
    outcome.addBoth(lambda _: core.waiting.discard(outcome))


async def _acknowledge(core: Core, request: wire.Ack) -> None:
    transcript = await core.desk.acknowledge(core.party, request.owner or core.party, request.id)
    core.send(answers.acked(transcript), request.ref)


async def _status(core: Core, request: wire.AskStatus) -> None:
    view = await core.desk.status(core.party, request.owner or core.party, request.id)
    core.send(answers.status(view), request.ref)


async def cancel(core: Core, request: wire.Cancel, upload_ended: bool = False) -> None:
    owner = request.owner or core.party
    await core.desk.cancel(core.party, owner, request.id, upload_ended)
    core.send(wire.Cancelled(id=request.id, owner=core.party), request.ref)


async def _list(core: Core, request: wire.AskList) -> None:
    views = await core.desk.listing(core.party)
    listed: list[wire.Listed] = []
    for start in range(0, len(views), LISTED_AT_ONCE):
        if start:
            await deferLater(core.host.clock, 0)
            if core.closed:
                return
        listed += map(answers.listed, views[start : start + LISTED_AT_ONCE])
    core.send(wire.Listing(transcripts=listed), request.ref)


async def _subscribe(core: Core, request: wire.Subscribe) -> None:
    def tell(transcript: Transcript, progress: float) -> None:
        core.tell(answers.event(transcript, progress))

    core.send(wire.Subscribed(), request.ref)
    if core.unwatch is None:
        core.unwatch = core.desk.watch(core.party, tell)


QUESTIONS: dict[type, Callable[[Core, Any], Step]] = {
    wire.Fetch: _fetch,
    wire.Ack: _acknowledge,
    wire.AskStatus: _status,
    wire.Cancel: cancel,
    wire.AskList: _list,
    wire.Subscribe: _subscribe,
}
"""What answers each kind of request."""
