"""The websocket end of a session, on Autobahn. Holds no policy but the transport's limits."""

from __future__ import annotations

from collections.abc import Callable

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.logger import Logger
from zope.interface import implementer

from transcribed.interfaces import ISessionPeer
from transcribed.requests import INTERNAL
from transcribed.session import Session
from transcribed.wire import MAX_TEXT, SUBPROTOCOL

GOING_AWAY, TOO_BIG, TRY_AGAIN_LATER = 1001, 1009, 1013
"""Close codes of RFC 6455, section 7.4.1, and of its registry at IANA."""
MAX_UNSENT = 64 * 1024 * 1024
"""A client that does not read is dropped when so many bytes wait for it."""
MAX_CONNECTIONS = 10_000
HANDSHAKE_SECONDS = 10
PING_SECONDS = 30
"""So often a client is pinged, and so long it may take to answer."""


@implementer(IPushProducer)
class _Backlog:
    """Counts what waits to be sent: Twisted tells by pausing when its buffer is full."""

    def __init__(self) -> None:
        self.full = False
        self.unsent = 0

    def pauseProducing(self) -> None:
        self.full = True

    def resumeProducing(self) -> None:
        self.full = False
        self.unsent = 0

    def stopProducing(self) -> None:
        self.full = True


class SessionProtocol(WebSocketServerProtocol, ISessionPeer):  # type: ignore[misc]
    """One connection: frames in to the session, its answers out."""

    _log = Logger()
    _session: Session | None = None
    closeHandshakeTimeoutCall: IDelayedCall | None
    factory: SessionFactory

    def onConnect(self, request: ConnectionRequest) -> str | None:
        """Choose the subprotocol, or refuse the handshake."""
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
            self._backlog = _Backlog()
            # The HTTP channel that took the handshake is still the transport's producer.
            self.transport.unregisterProducer()
            self.transport.registerProducer(self._backlog, True)
            if self.factory.closing:
                self.close(GOING_AWAY, "the daemon is shutting down")
                return
            if len(self.factory.connections) >= self.factory.max_connections:
                self.close(TRY_AGAIN_LATER, "too many connections")
                return
            self.factory.connections.add(self)
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
        else:
            self._text.append(payload)

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
            self.factory.connections.remove(self)
            self.gone.callback(None)
        session, self._session = self._session, None
        if session is not None:
            session.lost()

    def send(self, payload: bytes) -> None:
        """Send a text frame, unless the client has stopped to read: then drop it."""
        if self.state != self.STATE_OPEN:
            return
        if self._backlog.full:
            self._backlog.unsent += len(payload)
            if self._backlog.unsent > MAX_UNSENT:
                self._log.warn("{peer} does not read: dropped", peer=self.peer)
                self.dropConnection(abort=True)
                return
        self.sendMessage(payload)

    def close(self, code: int, reason: str) -> None:
        """Close with a code of the protocol; Autobahn's own sendClose only lets 1000 through."""
        if self.state == self.STATE_OPEN:
            self.transport.resumeProducing()
            self.sendCloseFrame(code=code, reasonUtf8=reason.encode()[:123])

    def pause(self) -> None:
        """Read nothing more for now."""
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Read on."""
        if self.state == self.STATE_OPEN:
            self.transport.resumeProducing()


class SessionFactory(WebSocketServerFactory):  # type: ignore[misc]
    """Makes connections.

    :ivar connections: those that are open.
    :ivar closing: whether the daemon stops.
    :ivar make_session: makes the session for one.
    """

    protocol = SessionProtocol

    def __init__(
        self,
        make_session: Callable[[ISessionPeer], Session],
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        # The port is not known here and only matters for the Origin of browsers.
        super().__init__(protocols=[SUBPROTOCOL], server="transcribed")
        self.make_session = make_session
        self.max_connections = max_connections
        self.closing = False
        self.connections: set[SessionProtocol] = set()
        self.setProtocolOptions(
            failByDrop=False,
            webStatus=False,
            openHandshakeTimeout=HANDSHAKE_SECONDS,
            closeHandshakeTimeout=2,
            autoPingInterval=PING_SECONDS,
            autoPingTimeout=PING_SECONDS,
            tcpNoDelay=True,
            # Browsers say which page asks, and while clients need no credentials, any page that is
            # open on this machine could ask. Other programs mostly send no Origin.
            allowedOrigins=[
                f"{scheme}://{host}:*"
                for scheme in ("http", "https")
                for host in ("localhost", "127.0.0.1", "[::1]")
            ],
            allowNullOrigin=False,
        )

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
