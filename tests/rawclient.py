"""A websocket client (RFC 6455) that sends just the bytes it is told to, without Autobahn."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def frame(opcode: int, payload: bytes = b"", fin: bool = True, masked: bool = True) -> bytes:
    """One frame's bytes."""
    head = bytes([(0x80 if fin else 0) | opcode])
    bit = 0x80 if masked else 0
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", len(payload))
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", len(payload))
    if not masked:
        return head + payload
    mask = os.urandom(4)
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    number = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return head + mask + number.to_bytes(len(payload), "big")


class RawClient(Protocol):
    """One connection.

    :ivar welcome: what it was greeted with.
    :ivar stubborn: whether it leaves close frames unanswered.
    :ivar status: the HTTP status line of the handshake's answer.
    :ivar headers: the rest of it.
    :ivar frames: what came: opcode and payload; None when the connection is gone.
    """

    transport: Any

    def __init__(self) -> None:
        self.opened: Deferred[RawClient] = Deferred()
        self.frames: DeferredQueue[tuple[int, bytes] | None] = DeferredQueue()
        self.lost: Deferred[None] = Deferred()
        self.stubborn = False
        self.welcome: dict[str, Any] = {}
        self.status = ""
        self.headers = ""
        self._buffer = b""

    def handshake(self, path: str, protocols: str | None, origin: str | None) -> None:
        """Ask for a websocket."""
        lines = [
            f"GET {path} HTTP/1.1",
            "Host: localhost",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        ]
        if protocols is not None:
            lines.append(f"Sec-WebSocket-Protocol: {protocols}")
        if origin is not None:
            lines.append(f"Origin: {origin}")
        self.transport.write("\r\n".join([*lines, "", ""]).encode())

    def dataReceived(self, data: bytes) -> None:
        """Take the handshake's answer and frames apart."""
        self._buffer += data
        if not self.status:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            self.status, _, self.headers = head.decode().partition("\r\n")
            self._buffer = rest
            self.opened.callback(self)
        if " 101 " in self.status:
            while self._take_frame():
                pass

    def _take_frame(self) -> bool:
        data = self._buffer
        if len(data) < 2:
            return False
        length, start = data[1] & 0x7F, 2
        if length == 126:
            length, start = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10], "big"), 10
        if len(data) < start + length:
            return False
        opcode, payload = data[0] & 0x0F, data[start : start + length]
        self._buffer = data[start + length :]
        if opcode == CLOSE and not self.stubborn:
            self.raw(frame(CLOSE, payload[:2]))
        self.frames.put((opcode, payload))
        return True

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self.frames.put(None)
        self.lost.callback(None)

    def raw(self, data: bytes) -> None:
        """Send bytes."""
        self.transport.write(data)

    def say(self, **message: Any) -> None:
        """Send a request."""
        self.raw(frame(TEXT, json.dumps(message).encode()))

    async def heard(self) -> dict[str, Any]:
        """The next answer; pings are passed over."""
        while True:
            came = await self.frames.get()
            assert came is not None, "the connection is gone"
            if came[0] != PING:
                assert came[0] == TEXT, came
                answer: dict[str, Any] = json.loads(came[1])
                return answer

    async def ask(self, **message: Any) -> dict[str, Any]:
        """Send a request; the next answer."""
        self.say(**message)
        return await self.heard()

    async def close_code(self) -> int:
        """The code of the close frame that must come next."""
        came = await self.frames.get()
        assert came is not None and came[0] == CLOSE, came
        return int.from_bytes(came[1][:2], "big")


async def connect(
    reactor: Any,
    endpoint: str,
    path: str = "/ws",
    protocols: str | None = "transcribed.v1",
    origin: str | None = None,
) -> RawClient:
    """A connection whose handshake was answered, one way or another."""
    client: RawClient = await clientFromString(reactor, endpoint).connect(
        Factory.forProtocol(RawClient)
    )
    client.handshake(path, protocols, origin)
    return await client.opened


async def greet(reactor: Any, endpoint: str, party: str) -> RawClient:
    """A connection that has said hello."""
    client = await connect(reactor, endpoint)
    answer = await client.ask(type="hello", party=party)
    assert answer["type"] == "welcome", answer
    client.welcome = answer
    return client
