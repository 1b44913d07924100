"""One client's conversation: what it may say when, and what it is answered.

The conversation is a machine whose inputs are the client's requests; it knows no transport.
Requests are worked on one after the other, so that answers come in the order of the requests; only
a fetch that waits lets others pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from automat import TypeMachineBuilder
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from transcribed import answers, wire
from transcribed.desk import Delivery, Desk, Upload, Waiting
from transcribed.errors import BadMessage, Busy, TranscribedError, Unauthenticated
from transcribed.interfaces import ISessionPeer
from transcribed.transcript import Transcript

POLICY, INTERNAL = 1008, 1011
"""Close codes of RFC 6455, section 7.4.1."""
MAX_BAD_MESSAGES = 10
"""So many bad messages in a row end the connection."""
MAX_WAITING, RETRY_WAITING = 1000, 10.0
"""So many fetches may wait on one connection, and how soon one more may be tried, in seconds."""

Step = Coroutine[Any, Any, None]


@dataclass
class Core:
    """What a conversation has at hand.

    :ivar party: who the client is, once it has said so.
    :ivar bad_messages: how many came in a row.
    :ivar closed: whether the daemon has ended it: nothing more is heard.
    :ivar unwatch: ends the subscription, if there is one.
    :ivar waiting: the fetches that wait for their text.
    :ivar answering: whether a request is being worked on.
    :ivar held: events that came meanwhile: they are told after the answer.
    :ivar step: what the last request still has to wait for, if anything.
    """

    desk: Desk
    peer: ISessionPeer
    greeting: Callable[[str], wire.Welcome]
    party: str = ""
    bad_messages: int = 0
    closed: bool = False
    unwatch: Callable[[], None] | None = None
    waiting: set[Deferred[Delivery]] = field(default_factory=set)
    answering: bool = False
    held: list[wire.Event] = field(default_factory=list)
    step: Step | None = None

    def tell(self, event: wire.Event) -> None:
        if self.answering:
            self.held.append(event)
        else:
            self.send(event)

    def send(self, answer: wire.Answer, ref: str | None = None) -> None:
        self.peer.send(wire.render(wire.with_ref(answer, ref)))

    def send_bad(self, error: BadMessage, ref: str | None, id: str | None = None) -> None:
        self.bad_messages += 1
        self.send(answers.error(error, id=id), ref)
        if self.bad_messages >= MAX_BAD_MESSAGES:
            self.close(POLICY, "too many bad messages")

    def send_unauthenticated(self, reason: str, ref: str | None) -> None:
        self.send(answers.error(Unauthenticated(reason)), ref)
        self.close(POLICY, reason)

    def close(self, code: int, reason: str) -> None:
        self.closed = True
        self.peer.close(code, reason)


class Conversation(Protocol):
    """What can happen in a conversation: first what the client does, then what follows from it."""

    def hello(self, request: wire.Hello) -> None:
        """The client says who it is."""

    def ask(self, request: wire.Question) -> None:
        """Any request that is no part of an upload."""

    def submit(self, request: wire.Submit) -> None:
        """An upload begins."""

    def audio(self, data: bytes, begins: bool) -> None:
        """Audio bytes came; `begins` with the first ones of a binary frame."""

    def end(self, request: wire.End) -> None:
        """An upload is said to be over."""

    def bad(self, error: BadMessage, ref: str | None) -> None:
        """The client sent what is no request."""

    def bad_submit(self, error: BadMessage, ref: str | None, id: str | None) -> None:
        """An upload begins, but its `submit` is wrong."""

    def bad_end(self, error: BadMessage, ref: str | None, id: str | None) -> None:
        """An upload is said to be over, but its `end` is wrong."""

    def lost(self) -> None:
        """The connection is gone."""

    def greeted(self) -> None:
        """The client's word was accepted."""

    def opened(self, upload: Upload, request: wire.Submit) -> None:
        """Its upload may go on."""

    def refused(self, ids: set[str | None]) -> None:
        """Its upload was answered with an error; of these ids the rest is still coming in.

        None among them stands for an id that could not be read.
        """

    def over(self) -> None:
        """The upload is over, or what was swallowed of it."""


@dataclass
class Open:
    """The upload that is open, and the `submit` that opened it."""

    upload: Upload
    request: wire.Submit


_builder = TypeMachineBuilder(Conversation, Core)
_greeting = _builder.state("Greeting")
_ready = _builder.state("Ready")
_uploading = _builder.state("Uploading", lambda proto, core, upload, request: Open(upload, request))
_swallowing = _builder.state("Swallowing", lambda proto, core, ids: ids)
_gone = _builder.state("Gone")


# Greeting: nothing but a hello is heard.


@_greeting.upon(Conversation.hello).loop()
def _greet(proto: Conversation, core: Core, request: wire.Hello) -> None:
    if request.party is None:
        core.send_unauthenticated("hello must name the party", request.ref)
        return
    core.party = request.party
    core.send(core.greeting(request.party), request.ref)
    proto.greeted()


_greeting.upon(Conversation.greeted).to(_ready).returns(None)


def _ask_unknown(proto: Conversation, core: Core, request: wire.Request) -> None:
    core.send_unauthenticated("say hello first", request.ref)


_greeting.upon(Conversation.ask).loop()(_ask_unknown)
_greeting.upon(Conversation.submit).loop()(_ask_unknown)
_greeting.upon(Conversation.end).loop()(_ask_unknown)


@_greeting.upon(Conversation.audio).loop()
def _audio_unknown(proto: Conversation, core: Core, data: bytes, begins: bool) -> None:
    core.send_unauthenticated("say hello first", None)


@_greeting.upon(Conversation.bad).loop()
def _bad_unknown(proto: Conversation, core: Core, error: BadMessage, ref: str | None) -> None:
    core.send_unauthenticated(f"a good hello must come first: {error.reason}", ref)


@_greeting.upon(Conversation.bad_submit).loop()
@_greeting.upon(Conversation.bad_end).loop()
def _bad_upload_unknown(
    proto: Conversation, core: Core, error: BadMessage, ref: str | None, id: str | None
) -> None:
    core.send_unauthenticated("say hello first", ref)


# Ready: no upload is open.


@_ready.upon(Conversation.hello).loop()
@_uploading.upon(Conversation.hello, nodata=True).loop()
@_swallowing.upon(Conversation.hello, nodata=True).loop()
def _greet_again(proto: Conversation, core: Core, request: wire.Hello) -> None:
    core.send_bad(BadMessage("hello was said already"), request.ref)


@_ready.upon(Conversation.submit).loop()
def _submit(proto: Conversation, core: Core, request: wire.Submit) -> None:
    def refused(error: TranscribedError) -> None:
        core.send(answers.error(error, id=request.id, owner=core.party), request.ref)
        proto.refused({request.id})

    core.bad_messages = 0
    try:
        upload = core.desk.open_upload(core.party, request, refused)
    except TranscribedError as e:
        refused(e)
    else:
        proto.opened(upload, request)


@_ready.upon(Conversation.bad_submit).loop()
def _bad_submit(
    proto: Conversation, core: Core, error: BadMessage, ref: str | None, id: str | None
) -> None:
    core.send_bad(error, ref, id)
    proto.refused({id})


@_ready.upon(Conversation.bad_end).loop()
def _bad_end(
    proto: Conversation, core: Core, error: BadMessage, ref: str | None, id: str | None
) -> None:
    core.send_bad(error, ref, id)


_ready.upon(Conversation.opened).to(_uploading).returns(None)
_ready.upon(Conversation.refused).to(_swallowing).returns(None)


@_ready.upon(Conversation.audio).loop()
def _audio_alone(proto: Conversation, core: Core, data: bytes, begins: bool) -> None:
    if begins:
        core.send_bad(BadMessage("a binary frame, but no upload is open"), None)


@_ready.upon(Conversation.end).loop()
def _end_alone(proto: Conversation, core: Core, request: wire.End) -> None:
    core.send_bad(BadMessage("end, but no upload is open"), request.ref, request.id)


@_ready.upon(Conversation.ask).loop()
def _ask(proto: Conversation, core: Core, request: wire.Question) -> None:
    core.bad_messages = 0
    core.step = _QUESTIONS[type(request)](core, request)


@_ready.upon(Conversation.bad).loop()
@_uploading.upon(Conversation.bad, nodata=True).loop()
@_swallowing.upon(Conversation.bad, nodata=True).loop()
def _bad(proto: Conversation, core: Core, error: BadMessage, ref: str | None) -> None:
    core.send_bad(error, ref)


# Uploading: an upload is open.


@_uploading.upon(Conversation.audio).loop()
def _audio(proto: Conversation, core: Core, open: Open, data: bytes, begins: bool) -> None:
    core.bad_messages = 0
    try:
        open.upload.write(data)
    except TranscribedError as e:
        core.send(answers.error(e, id=open.request.id, owner=core.party), open.request.ref)
        proto.refused({open.request.id})


@_uploading.upon(Conversation.submit).loop()
def _submit_twice(proto: Conversation, core: Core, open: Open, request: wire.Submit) -> None:
    open.upload.discard()
    core.send_bad(BadMessage("an upload is open; neither is kept"), request.ref, request.id)
    proto.refused({open.request.id, request.id})


@_uploading.upon(Conversation.bad_submit).loop()
def _bad_submit_twice(
    proto: Conversation,
    core: Core,
    open: Open,
    error: BadMessage,
    ref: str | None,
    id: str | None,
) -> None:
    open.upload.discard()
    core.send_bad(error, ref, id)
    proto.refused({open.request.id, id})


@_uploading.upon(Conversation.bad_end).loop()
def _bad_end_uploading(
    proto: Conversation,
    core: Core,
    open: Open,
    error: BadMessage,
    ref: str | None,
    id: str | None,
) -> None:
    open.upload.discard()
    core.send_bad(error, ref, open.request.id)
    proto.over()


@_uploading.upon(Conversation.ask).loop()
def _ask_uploading(proto: Conversation, core: Core, open: Open, request: wire.Question) -> None:
    if (
        isinstance(request, wire.Cancel)
        and request.id == open.request.id
        and request.owner in (None, core.party)
    ):
        core.bad_messages = 0
        open.upload.discard()
        core.step = _cancel(core, request, upload_ended=True)
        proto.over()
    else:
        _ask(proto, core, request)


@_uploading.upon(Conversation.end).loop()
def _end(proto: Conversation, core: Core, open: Open, request: wire.End) -> None:
    if request.id != open.request.id:
        core.send_bad(BadMessage("end with another id than submit"), request.ref, request.id)
        return
    core.bad_messages = 0
    core.step = _finish(core, open, request)
    proto.over()


async def _finish(core: Core, open: Open, request: wire.End) -> None:
    ref = request.ref if request.ref is not None else open.request.ref
    try:
        transcript = await open.upload.finish(request.sha256)
    except TranscribedError as e:
        core.send(answers.error(e, id=request.id, owner=core.party), ref)
    else:
        core.send(answers.accepted(transcript), ref)


_uploading.upon(Conversation.refused, nodata=True).to(_swallowing).returns(None)
_uploading.upon(Conversation.over, nodata=True).to(_ready).returns(None)


@_uploading.upon(Conversation.lost).to(_gone)
def _lost_uploading(proto: Conversation, core: Core, open: Open) -> None:
    try:
        open.upload.discard()
    finally:
        _lost(proto, core)


# Swallowing: an upload was refused, and what the client had under way of it still comes in.

_swallowing.upon(Conversation.audio, nodata=True).loop().returns(None)
_swallowing.upon(Conversation.over, nodata=True).to(_ready).returns(None)


@_swallowing.upon(Conversation.submit).to(_ready)
def _submit_next(
    proto: Conversation, core: Core, ids: set[str | None], request: wire.Submit
) -> None:
    proto.submit(request)


@_swallowing.upon(Conversation.ask).to(_ready)
def _ask_next(
    proto: Conversation, core: Core, ids: set[str | None], request: wire.Question
) -> None:
    _ask(proto, core, request)


@_swallowing.upon(Conversation.bad_submit).to(_ready)
def _bad_submit_next(
    proto: Conversation,
    core: Core,
    ids: set[str | None],
    error: BadMessage,
    ref: str | None,
    id: str | None,
) -> None:
    proto.bad_submit(error, ref, id)


@_swallowing.upon(Conversation.end).loop()
def _end_swallowed(
    proto: Conversation, core: Core, ids: set[str | None], request: wire.End
) -> None:
    if not _swallow(proto, ids, request.id):
        proto.end(request)


@_swallowing.upon(Conversation.bad_end).loop()
def _bad_end_swallowed(
    proto: Conversation,
    core: Core,
    ids: set[str | None],
    error: BadMessage,
    ref: str | None,
    id: str | None,
) -> None:
    if not _swallow(proto, ids, id):
        proto.bad_end(error, ref, id)


def _swallow(proto: Conversation, ids: set[str | None], id: str | None) -> bool:
    """Whether an `end` belongs to what is swallowed; with the last one, or another, it is over."""
    if id is None or id in ids or None in ids:
        ids.discard(id if id in ids else None if None in ids else next(iter(ids)))
        swallowed = True
    else:
        ids.clear()
        swallowed = False
    if not ids:
        proto.over()
    return swallowed


# Gone: what was asked is no longer answered.


@_greeting.upon(Conversation.lost).to(_gone)
@_ready.upon(Conversation.lost).to(_gone)
def _lost(proto: Conversation, core: Core) -> None:
    if core.unwatch is not None:
        core.unwatch()
    for outcome in list(core.waiting):
        outcome.cancel()


@_swallowing.upon(Conversation.lost).to(_gone)
def _lost_swallowing(proto: Conversation, core: Core, ids: set[str | None]) -> None:
    _lost(proto, core)


_conversation = _builder.build()


# The requests that are no part of an upload


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
            _send_failure(core, failure, request.ref, request.id, owner)

    outcome.addCallback(answer).addErrback(fail)
    outcome.addBoth(lambda _: core.waiting.discard(outcome))


async def _acknowledge(core: Core, request: wire.Ack) -> None:
    transcript = await core.desk.acknowledge(core.party, request.owner or core.party, request.id)
    core.send(answers.acked(transcript), request.ref)


async def _status(core: Core, request: wire.AskStatus) -> None:
    view = await core.desk.status(core.party, request.owner or core.party, request.id)
    core.send(answers.status(view), request.ref)


async def _cancel(core: Core, request: wire.Cancel, upload_ended: bool = False) -> None:
    owner = request.owner or core.party
    await core.desk.cancel(core.party, owner, request.id, upload_ended)
    core.send(wire.Cancelled(id=request.id, owner=core.party), request.ref)


async def _list(core: Core, request: wire.AskList) -> None:
    core.send(answers.listing(await core.desk.listing(core.party)), request.ref)


async def _subscribe(core: Core, request: wire.Subscribe) -> None:
    def tell(transcript: Transcript, progress: float) -> None:
        core.tell(answers.event(transcript, progress))

    core.send(wire.Subscribed(), request.ref)
    if core.unwatch is None:
        core.unwatch = core.desk.watch(core.party, tell)


_QUESTIONS: dict[type, Callable[[Core, Any], Step]] = {
    wire.Fetch: _fetch,
    wire.Ack: _acknowledge,
    wire.AskStatus: _status,
    wire.Cancel: _cancel,
    wire.AskList: _list,
    wire.Subscribe: _subscribe,
}

_log = Logger()


def _send_failure(
    core: Core, failure: Failure, ref: str | None, id: str | None, owner: str | None
) -> None:
    """Answer a request with what went wrong; what nobody foresaw ends the connection."""
    if isinstance(failure.value, TranscribedError):
        core.send(answers.error(failure.value, id=id, owner=owner), ref)
        return
    _log.failure("a request failed", failure)
    core.send(answers.error(TranscribedError("an internal error"), id=id, owner=owner), ref)
    core.close(INTERNAL, "internal error")


@dataclass(frozen=True)
class Chunk:
    """Some bytes of a binary frame; `begins` with its first ones."""

    data: bytes
    begins: bool


class Session:
    """Takes what a client sends, in order, a request at a time.

    :param greeting: makes the answer to ``hello`` for a party.
    """

    def __init__(
        self, desk: Desk, peer: ISessionPeer, greeting: Callable[[str], wire.Welcome]
    ) -> None:
        self._core = Core(desk, peer, greeting)
        self._machine = _conversation(self._core)
        self._peer = peer
        self._queue: deque[Chunk | wire.AnyRequest | wire.Unparsable] = deque()
        self._running = False
        self._paused = False

    def text(self, payload: bytes) -> None:
        """A text frame came."""
        try:
            self._take(wire.parse(payload))
        except wire.Unparsable as e:
            self._take(e)

    def audio(self, data: bytes, begins: bool) -> None:
        """Some bytes of a binary frame came, `begins` with its first ones."""
        self._take(Chunk(data, begins))

    def lost(self) -> None:
        """The connection is gone: what was not begun is not done."""
        self._core.closed = True
        self._queue.clear()
        self._machine.lost()

    def _take(self, item: Chunk | wire.AnyRequest | wire.Unparsable) -> None:
        self._queue.append(item)
        self._work()

    def _work(self) -> None:
        if self._running:
            return
        self._running = True
        while self._queue and not self._core.answering:
            item = self._queue.popleft()
            if self._core.closed:
                continue
            try:
                self._hear(item)
            except Exception:
                self._stumble(Failure(), item)
            step, self._core.step = self._core.step, None
            if step is not None:
                self._core.answering = True
                done = Deferred.fromCoroutine(step)
                done.addErrback(self._stumble, item).addCallback(self._stepped)
        self._running = False
        if self._core.answering != self._paused and not self._core.closed:
            # Nothing more is read while a request is in work: the queue holds one read at most.
            self._paused = self._core.answering
            (self._peer.pause if self._core.answering else self._peer.resume)()

    def _stepped(self, _: None) -> None:
        self._core.answering = False
        held, self._core.held = self._core.held, []
        for event in held:
            self._core.send(event)
        self._work()

    def _hear(self, item: Chunk | wire.AnyRequest | wire.Unparsable) -> None:
        match item:
            case Chunk():
                self._machine.audio(item.data, item.begins)
            case wire.Unparsable(type="submit"):
                self._machine.bad_submit(item.error, item.ref, item.id)
            case wire.Unparsable(type="end"):
                self._machine.bad_end(item.error, item.ref, item.id)
            case wire.Unparsable():
                self._machine.bad(item.error, item.ref)
            case wire.Hello():
                self._machine.hello(item)
            case wire.Submit():
                self._machine.submit(item)
            case wire.End():
                self._machine.end(item)
            case _:
                self._machine.ask(item)

    def _stumble(self, failure: Failure, item: object) -> None:
        ref = getattr(item, "ref", None)
        id = getattr(item, "id", None)
        owner = getattr(item, "owner", None) or (self._core.party if id else None)
        _send_failure(self._core, failure, ref, id, owner)
