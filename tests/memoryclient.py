"""A raw websocket client in memory, and the server's transport at the other end of it.

The transport does what TCP does as far as it can be told apart: what is written leaves at the end
of a turn, and is lost where the connection was aborted before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import txaio
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IPullProducer,
    IPushProducer,
    ITCPTransport,
)
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
SECOND_OCTETS = b"\x80\x8f\x90\x9f\xa0\xbf"
MASK = b"\x37\xfa\x21\x3d"
READ = 65536
"""So much is read at once, as Twisted does."""


def frame(
    opcode: int,
    payload: bytes = b"",
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    length: int | None = None,
    width: int | None = None,
) -> bytes:
    """One frame's bytes.

    :param length: what its header says, where that is not the payload's length.
    :param width: how many bytes say so: 0, 2 or 8; None for as few as possible.
    """
    length = len(payload) if length is None else length
    if width is None:
        width = 0 if length < 126 else 2 if length < 65536 else 8
    bit = 0x80 if mask is not None else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if width == 0:
        head += bytes([bit | length])
    else:
        head += bytes([bit | (126 if width == 2 else 127)]) + length.to_bytes(width, "big")
    return head if mask is None and not payload else head + (mask or b"") + masked(payload, mask)


def masked(payload: bytes, mask: bytes | None) -> bytes:
    """The payload as it is on the wire."""
    if mask is None:
        return payload
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    number = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return number.to_bytes(len(payload), "big")


def is_valid(data: bytes) -> bool:
    """Whether it is UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_start(data: bytes) -> bool:
    """Whether there is UTF-8 that starts so."""
    endings = [b"", *(bytes([c]) + b"\x80" * n for c in SECOND_OCTETS for n in range(3))]
    return any(is_valid(data + ending) for ending in endings)


def close_frame(code: int, reason: bytes = b"") -> bytes:
    """A client's close."""
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


FULL = 65536
"""With more bytes unsent, a transport tells its producer, as TCP does."""


@implementer(ITCPTransport, IPushProducer)
class Transport:
    """The server's end of a connection.

    :ivar protocol: what takes the bytes.
    :ivar gone: whether the connection is over.
    :ivar aborted: whether it was ended with a reset.
    :ivar unsent: how many bytes were not sent yet.
    """

    def __init__(self, client: Client) -> None:
        self.protocol: Any = None
        self.disconnecting = False
        self.aborted = False
        self.gone = False
        self.paused = False
        self._client = client
        self.unsent = 0
        self._full = False
        self._producer: Any = None
        self._unsent: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send, at the end of the turn."""
        if not isinstance(data, bytes):
            raise TypeError(f"bytes, not {type(data)}")
        if data and not self.gone and not self.disconnecting:
            self._unsent.append(data)
            self.unsent += len(data)
            if self._producer is not None and self.unsent > FULL and not self._full:
                self._full = True
                self._producer.pauseProducing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send, at the end of the turn."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Close when all is sent."""
        self.disconnecting = True

    def abortConnection(self) -> None:
        """Close at once: what was not sent never will be."""
        if not self.gone:
            self.disconnecting = self.aborted = True
            self._unsent.clear()

    def pauseProducing(self) -> None:
        """Deliver nothing more."""
        self.paused = True

    def resumeProducing(self) -> None:
        """Deliver on, at the end of the turn."""
        self.paused = False

    def stopProducing(self) -> None:
        """The protocol wants no more."""
        self.loseConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """As a TCP transport, it has one at most."""
        if self._producer is not None:
            raise RuntimeError("there is a producer already")
        assert (IPushProducer if streaming else IPullProducer).providedBy(producer)
        self._producer = producer

    def unregisterProducer(self) -> None:
        """Forget the producer."""
        self._producer = None

    def end_turn(self) -> bool:
        """What the reactor does after a turn; whether there was anything to do."""
        if self.gone or (self._client.stuck and not self.aborted):
            return False
        sent, self._unsent = b"".join(self._unsent), []
        self.unsent = 0
        if self._full and self._producer is not None:
            self._producer.resumeProducing()
        self._full = False
        self._client.took(sent)
        if self.disconnecting:
            self.lost(ConnectionAborted() if self.aborted else ConnectionDone())
            return True
        return bool(sent)

    def lost(self, reason: Exception) -> None:
        """The connection is over."""
        self.gone = True
        protocol: IProtocol = self.protocol
        # As TCP does: nothing keeps the protocol any more.
        self.protocol = self._producer = None
        protocol.connectionLost(Failure(reason))

    def getPeer(self) -> IPv4Address:
        """Some client of this machine."""
        return IPv4Address("TCP", "127.0.0.1", 54321)

    def getHost(self) -> IPv4Address:
        """The daemon's port."""
        return IPv4Address("TCP", "127.0.0.1", 6000)

    def getTcpNoDelay(self) -> bool:
        """Not kept."""
        return False

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Not kept."""

    def getTcpKeepAlive(self) -> bool:
        """Not kept."""
        return False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Not kept."""

    def loseWriteConnection(self) -> None:
        """Nobody half closes a websocket."""
        raise AssertionError("the server has closed its half only")


class Client:
    """A client that sends just the bytes it is told to.

    :ivar status: the status line that the handshake was answered with; empty before.
    :ivar headers: the rest of that answer's head, in lower case.
    :ivar body: what came after it where no websocket was made.
    :ivar frames: what came and was not looked at yet: opcodes and payloads.
    :ivar stubborn: whether it leaves a close frame unanswered.
    :ivar stuck: whether it reads nothing, so that nothing can be sent.
    """

    def __init__(self, port: IProtocolFactory) -> None:
        self.status = ""
        self.headers = ""
        self.body = b""
        self.frames: list[tuple[int, bytes]] = []
        self.stubborn = False
        self.stuck = False
        self.transport = Transport(self)
        self._received = b""
        self._unread = bytearray()
        self._delivering = False
        protocol = port.buildProtocol(self.transport.getPeer())
        assert protocol is not None
        self.transport.protocol = protocol
        protocol.makeConnection(self.transport)

    @property
    def protocol(self) -> Any:
        """What the server has at its end inside of the door."""
        return self.transport.protocol.wrappedProtocol

    @property
    def gone(self) -> bool:
        """Whether the server has ended the connection."""
        return self.transport.gone

    def raw(self, data: bytes, chop: int | None = None) -> None:
        """Send bytes, so many at a time where `chop` says so."""
        for start in range(0, len(data), chop or max(len(data), 1)):
            self._unread += data[start : start + chop] if chop else data
            self.settle()

    def settle(self) -> None:
        """Turn the reactor until nothing more happens."""
        if self._delivering:
            return
        self._delivering = True
        try:
            busy = True
            while busy and not self.gone:
                busy = False
                if self._unread and not (self.transport.paused or self.transport.disconnecting):
                    data = bytes(self._unread[:READ])
                    del self._unread[:READ]
                    self.transport.protocol.dataReceived(data)
                    busy = True
                busy = self.transport.end_turn() or busy
                busy = _let_due_calls_happen() or busy
        finally:
            self._delivering = False

    def vanish(self) -> None:
        """The connection breaks."""
        if not self.gone:
            self.transport.lost(ConnectionLost())

    def took(self, data: bytes) -> None:
        """Bytes came."""
        self._received += data
        if not self.status:
            head, separator, rest = self._received.partition(b"\r\n\r\n")
            if not separator:
                return
            self.status, _, headers = head.decode("latin-1").partition("\r\n")
            self.headers = headers.lower()
            self._received = rest
        if " 101 " not in self.status:
            self.body, self._received = self.body + self._received, b""
            return
        while (came := self._take_frame()) is not None:
            self.frames.append(came)
            if came[0] == CLOSE and not self.stubborn and not self.gone:
                self._unread += close_frame(int.from_bytes(came[1][:2], "big") or 1000)

    def _take_frame(self) -> tuple[int, bytes] | None:
        data = self._received
        if len(data) < 2:
            return None
        # A server sends whole messages, unmasked, and no reserved bits.
        assert data[0] & 0xF0 == 0x80 and not data[1] & 0x80, data[:2]
        length, start = data[1], 2
        if length >= 126:
            start = 4 if length == 126 else 10
            length = int.from_bytes(data[2:start], "big")
        if len(data) < start + length:
            return None
        self._received = data[start + length :]
        return data[0] & 0x0F, data[start : start + length]

    def open(self, *more: str) -> None:
        """Shake hands."""
        self.raw(handshake(*more))

    def say(self, **message: Any) -> None:
        """Send a request."""
        self.raw(frame(TEXT, json.dumps(message).encode()))

    def heard(self) -> dict[str, Any]:
        """The oldest answer that was not looked at yet."""
        opcode, payload = self.frames.pop(0)
        assert opcode == TEXT, (opcode, payload)
        answer: dict[str, Any] = json.loads(payload)
        return answer

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a request; its answer, which must be the only thing that came."""
        assert not self.frames, self.frames
        self.say(**message)
        answer = self.heard()
        assert not self.frames, self.frames
        return answer

    def close_code(self) -> int:
        """The code of the close frame that came as the last of all."""
        assert self.frames, "nothing came"
        opcode, payload = self.frames.pop(0)
        assert opcode == CLOSE and not self.frames, (opcode, payload, self.frames)
        return int.from_bytes(payload[:2], "big")


def _let_due_calls_happen() -> bool:
    """What the reactor does between two reads; whether there was anything to do."""
    clock: Clock = txaio.config.loop
    due = any(call.getTime() <= clock.seconds() for call in clock.getDelayedCalls())
    clock.advance(0)
    return due


def handshake(*more: str, **instead: str | None) -> bytes:
    """A websocket's HTTP request, with `more` lines, and other values, or None, for some."""
    headers = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    lines = [f"{instead.pop('request', 'GET /ws HTTP/1.1')}"]
    for name, value in headers.items():
        given = instead.get(name.lower().replace("-", "_"), value)
        if given is not None:
            lines.append(f"{name}: {given}")
    return "\r\n".join([*lines, *more, "", ""]).encode("latin-1")
