"""A websocket client that costs little: thousands of them fit into one process.

What it sends can be prepared once and for all; what it is sent is only taken apart.
"""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Protocol

from tests.rawclient import BINARY, CLOSE, PING, PONG, TEXT, frame

_HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: transcribed.v1\r\n\r\n"
)


def request(**message: Any) -> bytes:
    """The frame of a request."""
    return frame(TEXT, msgspec.json.encode(message))


def audio_frames(audio: bytes, step: int) -> list[bytes]:
    """Binary frames of `step` bytes of audio each."""
    return [frame(BINARY, audio[at : at + step]) for at in range(0, len(audio), step)]


class LightClient(Protocol):
    """A connection, which says hello by itself.

    :ivar party: who it is.
    :ivar open: whether its handshake was answered, and it is not lost.
    """

    transport: Any

    def __init__(self, party: str) -> None:
        self.party = party
        self.open = False
        self._buffer = b""

    def connectionMade(self) -> None:
        """Ask for a websocket."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self.transport.write(_HANDSHAKE)

    def dataReceived(self, data: bytes) -> None:
        """Take the answer to the handshake, and frames, apart."""
        if self._buffer:
            data = self._buffer + data
        if not self.open:
            head, separator, rest = data.partition(b"\r\n\r\n")
            if not separator:
                self._buffer = data
                return
            if b" 101 " not in head:
                self.transport.abortConnection()
                return
            self.open, data = True, rest
            self.say(type="hello", party=self.party)
        self._buffer = data[self._take(data) :]

    def _take(self, data: bytes) -> int:
        """Take the frames that are whole; answers where the next one begins."""
        at, size = 0, len(data)
        while size - at >= 2:
            # The masking bit is not set: they are a server's.
            length, start = data[at + 1], at + 2
            if length >= 126:
                wide = 2 if length == 126 else 8
                if size < start + wide:
                    break
                length = int.from_bytes(data[start : start + wide], "big")
                start += wide
            if size < start + length:
                break
            self._frame(data[at] & 0x0F, data[start : start + length])
            at = start + length
        return at

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self.heard(payload)
        elif opcode == PING:
            self.write(frame(PONG, payload))
        elif opcode == CLOSE:
            self.write(frame(CLOSE, payload[:2]))

    def write(self, data: bytes) -> None:
        """Send frames."""
        self.transport.write(data)

    def say(self, **message: Any) -> None:
        """Send a request."""
        self.write(request(**message))

    def heard(self, payload: bytes) -> None:
        """An answer or an event came."""


class Heard(msgspec.Struct):
    """What is looked at of an answer."""

    type: str
    ref: str = ""
    id: str = ""
    code: str = ""
    state: str = ""


parse = msgspec.json.Decoder(Heard).decode
"""Reads an answer."""
