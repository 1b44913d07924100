"""What a client may say when: its conversation as a machine that knows no transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from automat import TypeMachineBuilder

from transcribed import answers, wire
from transcribed.errors import BadMessage, TranscribedError, Unauthenticated
from transcribed.requests import QUESTIONS, Core, cancel
from transcribed.upload import Upload


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
    core.heard_hello()
    core.step = _let_in(proto, core, request)


async def _let_in(proto: Conversation, core: Core, request: wire.Hello) -> None:
    peer = core.peer
    token = peer.bearer if request.token is None else request.token
    try:
        avatar, leave = await core.host.admit(peer.address, request.party, token, core)
    except Unauthenticated as e:
        if not core.closed:
            core.send_unauthenticated(e.reason, request.ref)
        return
    if core.closed:
        leave()
        return
    core.party, core.leave = avatar.name, leave
    core.send(core.host.greeting(core.party), request.ref)
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
    core.step = QUESTIONS[type(request)](core, request)


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


@_uploading.upon(Conversation.submit).loop()
def _submit_twice(proto: Conversation, core: Core, open: Open, request: wire.Submit) -> None:
    error = BadMessage("an upload is open; neither is kept")
    _bad_submit_twice(proto, core, open, error, request.ref, request.id)


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
        core.step = cancel(core, request, upload_ended=True)
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
    core.heard_hello()
    if core.leave is not None:
        core.leave()
    if core.unwatch is not None:
        core.unwatch()
    for outcome in list(core.waiting):
        outcome.cancel()


@_swallowing.upon(Conversation.lost).to(_gone)
def _lost_swallowing(proto: Conversation, core: Core, ids: set[str | None]) -> None:
    _lost(proto, core)


converse = _builder.build()
"""Begins a conversation: makes a :class:`Conversation` of a :class:`Core`."""
