"""One websocket to the daemon: where it is, how to get there, and Autobahn behind a small face."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec
from autobahn.exception import Disconnected
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.logger import Logger
from twisted.python.failure import Failure

from transcribed import __version__
from transcribed.client._answers import AnyAnswer, exception, parse, salvage_ref
from transcribed.errors import Unauthenticated
from transcribed.wire import SUBPROTOCOL, Error, Welcome

MAX_ANSWER = 64 * 1024 * 1024
"""The most bytes of one answer; a long transcript with its words is some megabytes."""

_TRY_AGAIN_LATER = 1013


class Unreachable(Exception):
    """The daemon cannot be reached, or the connection to it broke and could not be mended."""


@dataclass(frozen=True)
class Address:
    """Where a daemon is.

    :ivar websocket: the ``ws://`` or ``wss://`` URL for the handshake.
    :ivar path: the unix socket; None for TCP.
    """

    url: str
    websocket: str
    host: str
    port: int
    secure: bool
    path: str | None = None

    @classmethod
    def parse(cls, url: str) -> Address:
        """Reads ``ws://HOST[:PORT][/PATH]``, ``wss://…`` or ``ws+unix:/SOCKET[:/PATH]``.

        Without a path it is ``/ws``. Raises :exc:`ValueError` for anything else.
        """
        if url.startswith("ws+unix:"):
            path, _, resource = url.removeprefix("ws+unix:").partition(":")
            if path.startswith("//"):
                path = "/" + path.lstrip("/")
            if not path.startswith("/"):
                raise ValueError(f"{url!r} does not name a socket: ws+unix:/run/x.sock is meant")
            return cls(url, f"ws://localhost{resource or '/ws'}", "localhost", 80, False, path)
        parts = urlsplit(url)
        host = parts.hostname
        if parts.scheme not in ("ws", "wss") or host is None:
            raise ValueError(f"{url!r} is no ws://HOST:PORT/ws, wss://… or ws+unix:/SOCKET")
        if parts.username or parts.fragment:
            raise ValueError("a daemon's URL has no user and no fragment")
        secure = parts.scheme == "wss"
        port = parts.port or (443 if secure else 80)
        if parts.path in ("", "/"):
            parts = parts._replace(path="/ws")
        return cls(url, parts.geturl(), host, port, secure)

    def endpoint(self, reactor: Any, cafile: str | None, timeout: float) -> Any:
        """A way there that takes at most `timeout` seconds; over TLS, the name is checked.

        :param cafile: PEM certificates to trust instead of the system's.
        :raises OSError: for a `cafile` that cannot be read.
        :raises ValueError: for one without a certificate.
        """
        if self.path is not None:
            return UNIXClientEndpoint(reactor, self.path, timeout)
        endpoint: Any = HostnameEndpoint(reactor, self.host, self.port, timeout)
        if not self.secure:
            return endpoint
        from twisted.internet.ssl import optionsForClientTLS

        trust = None if cafile is None else _trust(cafile)
        return wrapClientTLS(optionsForClientTLS(self.host, trust), endpoint)


def _trust(cafile: str) -> Any:
    from twisted.internet.ssl import Certificate, trustRootFromCertificates

    with open(cafile, "rb") as file:
        found = re.findall(
            rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", file.read(), re.DOTALL
        )
    if not found:
        raise ValueError(f"{cafile}: there is no certificate in it")
    certificates = [Certificate.loadPEM(pem) for pem in found]
    return trustRootFromCertificates(certificates)


class Connection(WebSocketClientProtocol):  # type: ignore[misc]
    """A websocket that says hello by itself.

    :ivar welcomed: fires with the :class:`~transcribed.wire.Welcome`, or fails.
    :ivar received: called with each answer after it.
    :ivar unread: called with the ``ref`` of each that could not be read.
    :ivar lost: called once with an :exc:`Unreachable` when a welcomed connection has ended.
    :ivar ended: fires with None when the connection has ended, welcomed or not.
    """

    _log = Logger()
    _broken: str | None = None

    def __init__(self, hello: dict[str, Any], name: str) -> None:
        super().__init__()
        self._hello = hello
        self._name = name
        self._greeted = False
        self.welcomed: Deferred[Welcome] = Deferred(lambda _: self.abort())
        self.ended: Deferred[None] = Deferred()
        self.received: Callable[[AnyAnswer], None] = lambda _: None
        self.unread: Callable[[str], None] = lambda _: None
        self.lost: Callable[[Unreachable], None] = lambda _: None

    def send(self, message: dict[str, Any]) -> None:
        """Sends a request; on a connection that is going down it is silently lost."""
        self._put(msgspec.json.encode(message), False)

    def send_audio(self, frame: bytes) -> None:
        """Sends a binary frame, or loses it likewise."""
        self._put(frame, True)

    def _put(self, payload: bytes, binary: bool) -> None:
        with suppress(Disconnected):
            self.sendMessage(payload, isBinary=binary)

    def abort(self) -> None:
        """Ends the connection at once, whatever is still in its buffer."""
        self.transport.abortConnection()

    def onOpen(self) -> None:
        """Autobahn's: the handshake is done."""
        try:
            self.send(self._hello)
        except Exception:
            # Autobahn would keep a connection that nobody uses.
            self._log.failure("cannot say hello")
            self.abort()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Autobahn's: an answer is here."""
        try:
            self._take(payload)
        except Exception:
            self._log.failure("an answer could not be handled")
            self.abort()

    def _take(self, payload: bytes) -> None:
        answer = parse(payload)
        if self._greeted:
            if answer is not None:
                self.received(answer)
            elif (ref := salvage_ref(payload)) is not None:
                self.unread(ref)
            return
        self._greeted = True
        if isinstance(answer, Welcome):
            self.welcomed.callback(answer)
        elif isinstance(answer, Error):
            self.welcomed.errback(exception(answer))
            self.abort()
        else:
            self.welcomed.errback(Unreachable(f"{self._name} does not speak {SUBPROTOCOL}"))
            self.abort()

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """Autobahn's: the connection has ended, opened or not."""
        self._greeted = True
        if not self.welcomed.called:
            self.welcomed.errback(self._why_not(code, reason))
        else:
            self.lost(Unreachable(f"the connection to {self._name} broke{_said(code, reason)}"))
        self.ended.callback(None)

    def _why_not(self, code: int | None, reason: str | None) -> Exception:
        why = self.wasNotCleanReason or ""
        if "[401]" in why or "[403]" in why:
            return Unauthenticated(f"{self._name} refused the credentials")
        if code == _TRY_AGAIN_LATER:
            return Unreachable(f"{self._name} has too many connections")
        if self._broken is not None:
            return Unreachable(f"no trusted TLS with {self._name}: {self._broken}")
        if "timeout" in why:
            return Unreachable(f"{self._name} does not answer")
        return Unreachable(f"{self._name} did not answer as expected: {why or reason or code}")

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Twisted's: keeps what TLS says, which Autobahn reduces to a library's function name."""
        if reason is not None:
            self._broken = _tls_reason(reason.value)
        super().connectionLost(reason)


def _tls_reason(error: BaseException | None) -> str | None:
    if type(error).__name__ == "VerificationError":
        return "the certificate is for another name"
    arguments: Any = getattr(error, "args", ())
    try:
        # OpenSSL's queue of (library, function, reason).
        return ", ".join(str(entry[2]) for entry in arguments[0]) or None
    except (IndexError, TypeError):
        return None


def _said(code: int | None, reason: str | None) -> str:
    if code == 1001:
        return ": it is shutting down"
    if code is None or code == 1006:
        return ""
    return f" (closed with {code}{', ' + reason if reason else ''})"


async def dial(
    reactor: Any,
    address: Address,
    endpoint: Any,
    hello: dict[str, Any],
    timeout: float,
) -> tuple[Connection, Welcome]:
    """A connection that was welcomed.

    :param timeout: seconds for each of the handshake and the welcome.
    :raises Unreachable: there is none to be had.
    :raises transcribed.errors.TranscribedError: the daemon refused the ``hello``.
    """
    factory = WebSocketClientFactory(
        address.websocket,
        protocols=[SUBPROTOCOL],
        useragent=f"transcribe/{__version__}",
        reactor=reactor,
    )
    factory.setProtocolOptions(
        maxFramePayloadSize=MAX_ANSWER,
        maxMessagePayloadSize=MAX_ANSWER,
        failByDrop=False,
        openHandshakeTimeout=timeout,
        closeHandshakeTimeout=2,
        autoPingInterval=20,
        autoPingTimeout=40,
        perMessageCompressionOffers=[],
    )
    factory.noisy = False

    def build() -> Connection:
        connection = Connection(hello, address.url)
        connection.factory = factory
        return connection

    factory.buildProtocol = lambda _: build()
    try:
        connection: Connection = await endpoint.connect(factory)
    except Exception as e:
        raise Unreachable(f"cannot reach {address.url}: {_plain(e)}") from e
    try:
        welcome = await connection.welcomed.addTimeout(timeout, reactor)
    except TimeoutError as e:
        raise Unreachable(f"{address.url} does not answer") from e
    return connection, welcome


def _plain(error: Exception) -> str:
    # Twisted's texts end in a period and some begin with a class's first docstring line.
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()).rstrip(".")
    return text or type(error).__name__
