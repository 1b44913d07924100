"""A daemon of the protocol that transcribes nothing: for the tests of the client and the command.

It keeps what it is sent, answers as docs/protocol.rst says, and can be told to refuse, to stay
silent, or to cut the connection at a point.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from autobahn.exception import Disconnected
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionDeny
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.trial.unittest import TestCase

from transcribed.client import Client

WELCOME = {
    "type": "welcome",
    "server": "transcribed/fake",
    "model": "fake",
    "limits": {"seconds": 7200, "bytes": 1 << 30},
    "of a later version": True,
}
EXPIRES = "2030-01-01T00:00:00Z"


@dataclass
class Kept:
    """A recording that was accepted."""

    message: dict[str, Any]
    audio: bytes
    owner: str
    text: str | None = None
    failed: str | None = None
    gone: bool = False
    acked: bool = False
    waiting: list[tuple[Any, str | None]] = field(default_factory=list)

    def status(self, kind: str, **more: Any) -> dict[str, Any]:
        state = "queued" if self.text is None else "ready"
        return {
            "type": kind,
            "id": self.message["id"],
            "owner": self.owner,
            "receiver": self.message.get("receiver", self.owner),
            "state": "failed" if self.failed else state,
            "progress": 0.25,
            "seconds": 1.5,
            "given": {"owner": self.acked, "receiver": False},
            "expires": EXPIRES,
        } | more

    def transcript(self, **more: Any) -> dict[str, Any]:
        words = [{"word": "hej", "start": 0.0, "end": 0.5, "confidence": 0.9}]
        text = {"text": self.text, "words": words, "language": "sv", "model": "fake"}
        answer = self.status("transcript", **text, **more)
        return {name: value for name, value in answer.items() if name not in ("state", "progress")}


class _Session(WebSocketServerProtocol):  # type: ignore[misc]
    daemon: FakeDaemon

    def onConnect(self, request: Any) -> Any:
        if self.daemon.deny:
            raise ConnectionDeny(self.daemon.deny, "denied")
        return "transcribed.v1" if "transcribed.v1" in request.protocols else None

    def onOpen(self) -> None:
        self.party = ""
        self.upload: dict[str, Any] | None = None
        self.audio = bytearray()
        self.frames = 0
        self.number = len(self.daemon.sessions)
        self.daemon.sessions.append(self)

    def answer(self, message: dict[str, Any], ref: str | None) -> None:
        if ref is not None:
            message = message | {"ref": ref}
        with suppress(Disconnected):
            self.sendMessage(json.dumps(message).encode())

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if isBinary:
            self.frames += 1
            self.audio += payload
            self.daemon.frame_sizes.append(len(payload))
            self.daemon.reached(self, "frame")
            return
        message = json.loads(payload)
        self.daemon.requests.append((self.number, message))
        if self.daemon.reached(self, message["type"]):
            self.daemon.handle(self, message)

    def onClose(self, wasClean: bool, code: Any, reason: Any) -> None:
        self.daemon.closes.append(code)

    def connectionLost(self, reason: Any) -> None:
        super().connectionLost(reason)
        self.gone.callback(None)


class FakeDaemon:
    """The daemon; :meth:`listen` and :meth:`stop` it.

    :ivar requests: (number of the connection, message), as they came.
    :ivar cuts: at which message types (``frame`` for audio) to cut the connection, once for each
        time that it is in the list, instead of handling them.
    :ivar refusals: errors to answer the next message of a type with.
    :ivar silent: message types that are not answered at all.
    :ivar texts: texts that are ready as soon as a recording is accepted.
    """

    def __init__(self) -> None:
        self.sessions: list[Any] = []
        self.requests: list[tuple[int, dict[str, Any]]] = []
        self.frame_sizes: list[int] = []
        self.closes: list[Any] = []
        self.cuts: list[str] = []
        self.refusals: dict[str, list[dict[str, Any]]] = {}
        self.silent: set[str] = set()
        self.kept: dict[str, Kept] = {}
        self.texts: dict[str, str] = {}
        self.deny = 0
        self.close_code: int | None = None
        self.warning: str | None = None
        self.watchers: list[Any] = []
        self._gone: list[Deferred[None]] = []
        self._awaited: list[tuple[str, Deferred[Any]]] = []

    async def listen(self, endpoint: Any = None) -> str:
        factory = WebSocketServerFactory(protocols=["transcribed.v1"], reactor=reactor)
        factory.setProtocolOptions(failByDrop=False, closeHandshakeTimeout=1)

        def build(_: Any) -> _Session:
            session = _Session()
            session.factory = factory
            session.daemon = self
            session.gone = Deferred()
            self._gone.append(session.gone)
            return session

        factory.buildProtocol = build
        endpoint = endpoint or TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        self._port = await endpoint.listen(factory)
        address = self._port.getHost()
        return f"ws://127.0.0.1:{getattr(address, 'port', 0)}/ws"

    async def stop(self) -> None:
        await maybeDeferred(self._port.stopListening)
        for session in self.sessions:
            if session.transport is not None:
                session.transport.abortConnection()
        await DeferredList(self._gone)

    def when(self, kind: str) -> Deferred[Any]:
        """Fires when the next message of a type has been handled."""
        deferred: Deferred[Any] = Deferred()
        self._awaited.append((kind, deferred))
        return deferred

    def reached(self, session: _Session, kind: str) -> bool:
        proceed = kind not in self.cuts
        if not proceed:
            self.cuts.remove(kind)
            if self.close_code is None:
                session.transport.abortConnection()
            else:
                session.sendCloseFrame(self.close_code, b"")
        fired = [pair for pair in self._awaited if pair[0] == kind]
        for pair in fired:
            self._awaited.remove(pair)
            reactor.callLater(0, pair[1].callback, session)
        return proceed

    def types(self) -> list[str]:
        return [message["type"] for _, message in self.requests]

    def handle(self, session: _Session, message: dict[str, Any]) -> None:
        kind, ref = message["type"], message.get("ref")
        if kind in self.silent:
            return
        if self.refusals.get(kind):
            session.upload = None
            error = {"type": "error", "reason": "because", **self.refusals[kind].pop(0)}
            session.answer(error, ref)
            return
        getattr(self, "do_" + kind)(session, message, ref)

    def do_hello(self, session: Any, message: Any, ref: str | None) -> None:
        session.party = message["party"]
        warning = {} if self.warning is None else {"warning": self.warning}
        session.answer(WELCOME | warning | {"party": session.party}, ref)

    def do_submit(self, session: Any, message: Any, ref: str | None) -> None:
        session.upload, session.audio = message, bytearray()

    def do_end(self, session: Any, message: Any, ref: str | None) -> None:
        if session.upload is None:
            return
        audio, upload, session.upload = bytes(session.audio), session.upload, None
        assert message["sha256"] == hashlib.sha256(audio).hexdigest()
        kept = self.kept.setdefault(upload["id"], Kept(upload, audio, session.party))
        assert kept.audio == audio
        if upload["id"] in self.texts:
            kept.text = self.texts[upload["id"]]
        session.answer(kept.status("accepted"), ref)

    def do_fetch(self, session: Any, message: Any, ref: str | None) -> None:
        kept = self._find(session, message, ref)
        if kept is None:
            return
        if kept.failed is not None:
            session.answer({"type": "error", "code": "failed", "reason": kept.failed}, ref)
        elif kept.text is not None:
            session.answer(kept.transcript(), ref)
        elif message.get("wait", True):
            kept.waiting.append((session, ref))
        else:
            session.answer(kept.status("status"), ref)

    def do_ack(self, session: Any, message: Any, ref: str | None) -> None:
        kept = self._find(session, message, ref)
        if kept is not None:
            kept.acked = True
            given = {"owner": True, "receiver": False}
            session.answer(kept.status("acked", given=given, purged=False), ref)

    def do_status(self, session: Any, message: Any, ref: str | None) -> None:
        kept = self._find(session, message, ref)
        if kept is not None:
            session.answer(kept.status("status"), ref)

    def do_list(self, session: Any, message: Any, ref: str | None) -> None:
        found = [kept.status("status") for kept in self.kept.values()]
        session.answer({"type": "listing", "transcripts": found}, ref)

    def do_subscribe(self, session: Any, message: Any, ref: str | None) -> None:
        self.watchers.append(session)
        session.answer({"type": "subscribed"}, ref)

    def do_cancel(self, session: Any, message: Any, ref: str | None) -> None:
        if session.upload is not None and session.upload["id"] == message["id"]:
            session.upload = None
        elif (kept := self._find(session, message, ref)) is not None:
            kept.gone = True
        else:
            return
        session.answer({"type": "cancelled", "id": message["id"], "owner": session.party}, ref)

    def _find(self, session: Any, message: Any, ref: str | None) -> Kept | None:
        kept = self.kept.get(message["id"])
        if kept is None or kept.gone:
            code = "unknown-id" if kept is None else "gone"
            session.answer({"type": "error", "code": code, "reason": "not there"}, ref)
            return None
        return kept

    def finish(self, id: str, text: str) -> None:
        """The text is ready: whoever waits for it gets it."""
        kept = self.kept[id]
        kept.text = text
        waiting, kept.waiting = kept.waiting, []
        for session, ref in waiting:
            session.answer(kept.transcript(), ref)

    def tell(self, id: str, state: str) -> None:
        """An event to the subscribers."""
        for session in self.watchers:
            session.answer(self.kept[id].status("event", state=state), None)


class WithDaemon(TestCase):
    """With a fake daemon and clients that are closed in the end."""

    timeout = 20

    async def daemon(self, endpoint: Any = None, **options: Any) -> tuple[FakeDaemon, Client]:
        daemon = FakeDaemon()
        self.url = await daemon.listen(endpoint)
        self.addCleanup(lambda: Deferred.fromCoroutine(daemon.stop()))
        return daemon, self.client(self.url, **options)

    def client(self, url: str, **options: Any) -> Client:
        client = Client(url, "anna", "secret", reactor=reactor, policy=lambda _: 0.0, **options)
        self.addCleanup(client.close)
        return client

    async def fails(self, deferred: Deferred[Any], kind: type[Exception]) -> Any:
        """The exception that `deferred` ends in."""
        try:
            result = await deferred
        except kind as e:
            return e
        raise self.failureException(f"no {kind.__name__}, but {result}")
