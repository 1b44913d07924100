"""The websocket end of a session, on Autobahn. Holds no policy but the transport's limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import txaio
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from transcribed.addresses import source
from transcribed.interfaces import ISessionPeer
from transcribed.requests import INTERNAL
from transcribed.session import Session
from transcribed.tally import Tally
from transcribed.wire import MAX_TEXT, SUBPROTOCOL

GOING_AWAY, TOO_BIG, TRY_AGAIN_LATER = 1001, 1009, 1013
"""Close codes of RFC 6455, section 7.4.1, and of its registry at IANA."""
MAX_CONTROL = 125
"""The most bytes of a control frame: RFC 6455, section 5.5."""
CLOSE_SECONDS = 2
"""So long a client may take to answer a close, and to hang up."""
ALL_UNSENT = 16
"""So many times what may wait for one client may wait for all; who adds to more is dropped."""
TURN = 100
"""So many steps, two a frame, are done of what a client sent before others have their turn."""
OWN_ORIGINS = re.compile(r"https?://(localhost|127\.0\.0\.1|::1):\d+\Z")
"""Pages of the very machine that the browser runs on, as Autobahn shows them: with their port, and
without the brackets of an IPv6 address."""


@dataclass(frozen=True)
class Bounds:
    """What connections are held to.

    :ivar connections: the most of them; beyond it they are closed with 1013.
    :ivar per_address: the most of one address.
    :ivar handshake_seconds: how long the websocket's handshake may take.
    :ivar ping_seconds: how often clients are pinged, and how long they may take to answer.
    :ivar unsent: a client that does not read is dropped when more bytes wait for it.
    :ivar origins: of which web sites browsers' pages may connect, besides this machine's.
    """

    connections: int = 10_000
    per_address: int = 1000
    handshake_seconds: float = 10.0
    ping_seconds: float = 30.0
    unsent: int = 2**24
    origins: tuple[str, ...] = ()


@implementer(IPushProducer)
class _Backlog:
    """Counts what waits to be sent: Twisted tells by pausing when its buffer is full."""

    def __init__(self, factory: SessionFactory) -> None:
        self._factory = factory
        self.full = False
        self.unsent = 0

    def add(self, size: int) -> bool:
        """So much more waits; answers whether that is too much, of this client or of all."""
        self.unsent += size
        self._factory.unsent += size
        most = self._factory.bounds.unsent
        return self.unsent > most or self._factory.unsent > most * ALL_UNSENT

    def clear(self) -> None:
        """Nothing waits any more."""
        self._factory.unsent -= self.unsent
        self.unsent = 0

    def pauseProducing(self) -> None:
        self.full = True

    def resumeProducing(self) -> None:
        self.full = False
        self.clear()

    def stopProducing(self) -> None:
        self.full = True


class SessionProtocol(WebSocketServerProtocol, ISessionPeer):  # type: ignore[misc]
    """One connection: frames in to the session, its answers out."""

    _log = Logger()
    _session: Session | None = None
    address: str | None = None
    bearer: str | None = None
    closeHandshakeTimeoutCall: IDelayedCall | None
    autoPingTimeoutCall: IDelayedCall | None
    _hang_up: IDelayedCall | None = None
    _waits = False
    _turn: IDelayedCall | None = None
    factory: SessionFactory

    def onConnect(self, request: ConnectionRequest) -> str | None:
        """Choose the subprotocol, or refuse the handshake."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            self.bearer = token.strip()
        if not request.protocols:
            return None
        if SUBPROTOCOL not in request.protocols:
            raise ConnectionDeny(ConnectionDeny.BAD_REQUEST, f"only {SUBPROTOCOL} is spoken here")
        return SUBPROTOCOL

    def onOpen(self) -> None:
        """The handshake is done."""
        # An exception here would leave a connection that nobody serves and nothing ends.
        try:
            self.gone: Deferred[None] = Deferred()
            self._backlog = _Backlog(self.factory)
            # The HTTP channel that took the handshake is still the transport's producer.
            self.transport.unregisterProducer()
            self.transport.registerProducer(self._backlog, True)
            self.address = source(self.transport.getPeer())
            if (opened := getattr(self.transport, "opened", None)) is not None:
                # It is behind a door, and may stay.
                opened()
            if self.factory.closing:
                self.close(GOING_AWAY, "the daemon is shutting down")
            elif (reason := self.factory.full(self.address)) is not None:
                self.factory.turned_away()
                self.close(TRY_AGAIN_LATER, reason)
            else:
                self.factory.add(self)
                self._session = self.factory.make_session(self)
        except Exception:
            self._log.failure("a connection could not be opened")
            self.close(INTERNAL, "internal error")

    def onMessageBegin(self, isBinary: bool) -> None:
        """A message begins: text is collected, audio goes on as it comes."""
        self._binary = isBinary
        self._begins = True
        self._text: list[bytes] = []
        self._size = 0

    def onMessageFrameBegin(self, length: int) -> None:
        """A frame begins; `length` is what its header says."""
        self._size += length
        if not self._binary and self._size > MAX_TEXT:
            self.close(TOO_BIG, f"a text frame of more than {MAX_TEXT} bytes")

    def onMessageFrameData(self, payload: bytes) -> None:
        """Some bytes of a frame."""
        if self._session is None or self.state != self.STATE_OPEN:
            return
        if self._binary:
            begins, self._begins = self._begins, False
            self._session.audio(payload, begins)
        elif payload:
            # A message may have empty fragments without end.
            self._text.append(payload)

    def onPing(self, payload: bytes) -> None:
        """The client asks whether somebody is there."""
        # Who does not read need not be answered: that would be kept for him, without a bound.
        if not self._backlog.full:
            super().onPing(payload)

    def onAutoPingTimeout(self) -> None:
        """No pong was heard in time."""
        if self._waits or self._turn is not None:
            # It may have come: nothing is read just now.
            self.autoPingTimeoutCall = txaio.call_later(
                self.factory.bounds.ping_seconds, self.onAutoPingTimeout
            )
        else:
            super().onAutoPingTimeout()

    def onMessageFrameEnd(self) -> None:
        """Autobahn's own would join the frame's bytes, which went on already."""

    def onMessageEnd(self) -> None:
        """A message is whole."""
        text, self._text = b"".join(self._text), []
        if not self._binary and self._session is not None and self.state == self.STATE_OPEN:
            self._session.text(text)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The connection is gone, whether it was ever open or not."""
        # Autobahn lets it run on when the client just goes.
        timeout, self.closeHandshakeTimeoutCall = self.closeHandshakeTimeoutCall, None
        if timeout is not None:
            timeout.cancel()
        if self in self.factory.connections:
            self.factory.remove(self)
            self._backlog.clear()
            self.gone.callback(None)
        session, self._session = self._session, None
        if session is not None:
            session.lost()

    def dropConnection(self, abort: bool = False) -> None:
        """End the connection: at once with `abort`, else when what was written is sent."""
        # Autobahn resets it when the client has answered a close, or has sent one that is wrong,
        # and with that what was written just before, its own close, is never sent.
        abort = abort and not self.wasClean
        super().dropConnection(abort)
        if not abort and self._hang_up is None:
            # Who does not read could hold it for ever, as could who does not end TLS.
            self._hang_up = txaio.call_later(CLOSE_SECONDS, self.transport.abortConnection)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        for call in (self._hang_up, self._turn):
            if call is not None and call.active():
                call.cancel()
        self._hang_up = self._turn = None
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> None:
        """Bytes came."""
        # Autobahn would keep what comes after the end, as it still does over TLS. Its own
        # dataReceived only adds a line for a log that nobody keeps, a quarter of the work.
        if self.state != self.STATE_CLOSED:
            self._dataReceived(data)

    def consumeData(self) -> None:
        """Work on what came, while the session takes it, and only for so long as is fair."""
        if self.state not in (self.STATE_OPEN, self.STATE_CLOSING):
            super().consumeData()
            return
        steps = 0
        # A read holds thousands of small frames: 10,000 pings take the daemon a fifth of a second.
        while self._turn is None and not self._waits and self.state != self.STATE_CLOSED:
            if steps == TURN:
                self.transport.pauseProducing()
                self._turn = txaio.call_later(0, self._next_turn)
            elif not self.processData():
                break
            steps += 1

    def _next_turn(self) -> None:
        self._turn = None
        self._go_on()

    def _go_on(self) -> None:
        """Work on what is left, then read on."""
        try:
            self.consumeData()
        except Exception:
            # As Twisted does where it happens in dataReceived; otherwise it would stay, unread.
            self._log.failure("what a client sent could not be worked on")
            self.dropConnection(abort=True)
        if self._turn is None and not self._waits:
            # Once it is closed, too: TLS ends when the other side's last word was read.
            self.transport.resumeProducing()

    def onFrameData(self, payload: bytes) -> bool | None:
        """Some bytes of a frame, control frames' too."""
        if self.state != self.STATE_OPEN and self.current_frame.length > MAX_CONTROL:
            # Autobahn has closed for its length, and would collect it all the same.
            return None
        result: bool | None = super().onFrameData(payload)
        return result

    def send(self, payload: bytes) -> None:
        """Send a text frame, unless the client has stopped to read: then drop it."""
        if self.state != self.STATE_OPEN:
            return
        was_full = self._backlog.full
        if was_full and self._backlog.add(len(payload)):
            self._log.warn("{peer} does not read: dropped", peer=self.peer)
            self.dropConnection(abort=True)
            return
        self.sendMessage(payload)
        if self._backlog.full and not was_full:
            # What has filled it is the most of it, where it is a long transcript.
            self._backlog.add(len(payload))

    def close(self, code: int, reason: str) -> None:
        """Close with a code of the protocol; Autobahn's own sendClose only lets 1000 through."""
        if self.state == self.STATE_OPEN:
            self.sendCloseFrame(code=code, reasonUtf8=reason.encode()[:123])
            self.resume()

    def pause(self) -> None:
        """Take nothing more for now."""
        self._waits = True
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Take what has come meanwhile, and what comes."""
        if self._waits:
            self._waits = False
            self._go_on()


class SessionFactory(WebSocketServerFactory):  # type: ignore[misc]
    """Makes connections.

    :ivar connections: those that are open.
    :ivar turned_away: is called for each that was one too many.
    :ivar closing: whether the daemon stops.
    :ivar unsent: how many bytes wait for clients that do not read.
    :ivar make_session: makes the session for one.
    """

    protocol = SessionProtocol

    def __init__(
        self,
        make_session: Callable[[ISessionPeer], Session],
        bounds: Bounds = Bounds(),
    ) -> None:
        # The port is not known here and only matters for the Origin of browsers.
        super().__init__(protocols=[SUBPROTOCOL], server="transcribed")
        self.make_session = make_session
        self.bounds = bounds
        self.closing = False
        self.unsent = 0
        self.turned_away: Callable[[], None] = lambda: None
        self.connections: set[SessionProtocol] = set()
        self._of_address = Tally()
        self.setProtocolOptions(
            failByDrop=False,
            webStatus=False,
            openHandshakeTimeout=bounds.handshake_seconds,
            closeHandshakeTimeout=CLOSE_SECONDS,
            autoPingInterval=bounds.ping_seconds,
            autoPingTimeout=bounds.ping_seconds,
            tcpNoDelay=True,
            # Browsers say which page asks. Other programs mostly send no Origin.
            allowNullOrigin=False,
        )
        # Autobahn's own allowedOrigins takes the brackets of [::1] for a pattern's.
        self.allowedOriginsPatterns = [OWN_ORIGINS, *map(_pattern, bounds.origins)]

    def full(self, address: str | None) -> str | None:
        """Why no connection from there can be had; None where one can."""
        if len(self.connections) >= self.bounds.connections:
            return "too many connections"
        if address is not None and self._of_address[address] >= self.bounds.per_address:
            return "too many connections from your address"
        return None

    def add(self, connection: SessionProtocol) -> None:
        """One has opened."""
        self.connections.add(connection)
        if connection.address is not None:
            self._of_address[connection.address] += 1

    def remove(self, connection: SessionProtocol) -> None:
        """One is gone."""
        self.connections.remove(connection)
        if connection.address is not None:
            self._of_address.less(connection.address)

    def close_all(self) -> Deferred[None]:
        """The daemon stops: say so to every client; fires when all have gone, or were dropped."""
        self.closing = True
        connections = list(self.connections)
        for connection in connections:
            connection.close(GOING_AWAY, "the daemon is shutting down")
        gone: Deferred[None] = gatherResults([c.gone for c in connections]).addCallback(
            lambda _: None
        )
        return gone


def _pattern(origin: str) -> re.Pattern[str]:
    scheme, _, rest = origin.partition("://")
    host, colon, port = rest.rpartition(":")
    if not (colon and port.isdecimal()):
        host, port = rest, "443" if scheme == "https" else "80"
    return re.compile(re.escape(f"{scheme}://{host.strip('[]')}:{port}") + r"\Z")
