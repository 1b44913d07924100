"""Drives the daemon's port, in memory, with bytes that are no good frames or handshakes.

tests/verdict.py says how the daemon must close.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import txaio
from hypothesis import strategies as st

from tests.fakes import House
from tests.fuzzline import count, must
from tests.memoryclient import CLOSE, MASK, PONG, TEXT, Client, frame
from tests.verdict import verdict
from tests.websocketcase import make_server
from transcribed.wire import MAX_TEXT

STATUSES = {101, 200, 400, 403, 404, 405, 411, 413, 414, 417, 426, 431, 501, 505}
"""What a handshake may be answered with: not that something went wrong in the daemon."""
HELD = MAX_TEXT + 1024
"""The most bytes that a connection may hold of what it was sent."""
POLICY, MAX_BAD = 1008, 10
SIGNS_OF_LIFE = 100.0


@dataclass(frozen=True)
class Visit:
    """One client.

    :ivar handshake: what it sends first; None for a good one, and a hello.
    :ivar data: what it sends then.
    :ivar chop: so many bytes at a time, or more where it would take too long; None for all at once.
    :ivar reads: whether it reads what it is sent.
    """

    handshake: bytes | None
    data: bytes
    chop: int | None
    reads: bool


# What is drawn

_payload = st.one_of(
    st.sampled_from(
        [
            b"",
            b'{"type":"list"}',
            b'{"type":"submit","id":"m"}',
            b'{"type":"end","id":"m"}',
            b'{"type":"status","id":"m"}',
            b'{"type":"list","ref":"',
            b'\xc3\xb6"}',
            b"\xce",
            b"\xba\xe1\xbd",
            b"\xff",
            b"\xed\xa0\x80",
            b"\3\xe8",
            b"\3\xe8bye",
            b"\3\xe7",
            b"\3\xed",
            b"\x03",
            b"\3\xe8\xff",
            b"\0\0" * 8,
            b"x" * 125,
            b"x" * 126,
            b" " * 65536,
            b" " * 65537,
            bytes(70_000),
        ]
    ),
    st.binary(max_size=20),
)


def _rarely(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([usual] * 12 + list(others))


_frame = st.builds(
    frame,
    st.sampled_from([0, 0, 1, 1, 1, 1, 2, 2, 8, 9, 10, 9, 3, 7, 11, 15]),
    _payload,
    _rarely(True, False, False, False, False),
    _rarely(0, 1, 2, 4, 7),
    _rarely(MASK, None, bytes(4)),
    _rarely(None, 0, 5, 126, 2**16, 2**40, 2**63 - 1),
    st.none(),
)


def _long(opcode: int, length: int, payload: bytes) -> bytes:
    return frame(opcode, payload, length=length, width=8)


_pieces = st.one_of(
    _frame,
    _frame,
    _frame,
    st.builds(_long, st.sampled_from([1, 2, 9]), st.sampled_from([0, 200, 2**63]), _payload),
    st.builds(lambda p: frame(1, p, width=2, length=len(p) % 65536), _payload),
    st.binary(min_size=1, max_size=12),
)


def _flip(data: bytes, number: int) -> bytes:
    if not data or number % 3:
        return data
    changed = bytearray(data)
    changed[number % len(changed)] ^= 1 << number % 8
    return bytes(changed)


_stream = st.builds(
    lambda pieces, number: _flip(b"".join(pieces), number),
    st.lists(_pieces, min_size=1, max_size=12),
    st.integers(0, 2**16),
)

_HEADERS = {
    "Host": "localhost",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
_values = st.sampled_from(
    [
        "",
        " ",
        "x",
        "x" * 20_000,
        "localhost:port",
        "localhost:99999999999999999999",
        "[::1",
        "a, b, websocket",
        "keep-alive, Upgrade",
        "12",
        "13, 8",
        "-1",
        "1e1",
        "dGhlIHNhbXBsZSBub25jZQ=",
        "!!!!IHNhbXBsZSBub25jZQ==",
        "transcribed.v1",
        "transcribed.v1, transcribed.v1",
        "permessage-deflate; client_max_window_bits=99",
        'permessage-deflate;;;=,"',
        "null",
        "http://",
        "http://[",
        "http://localhost:port",
        "https://evil.example",
        "Bearer",
        "Bearer \xff",
        "\xff\xfe\0",
        "10",
        "-5",
        "99999999999999999999",
        "chunked",
        "gzip, chunked",
        "100-continue",
        "h2c",
        "a\r\n b",
    ]
)
_names = st.sampled_from(
    [
        *_HEADERS,
        "Origin",
        "Sec-WebSocket-Protocol",
        "Sec-WebSocket-Extensions",
        "Authorization",
        "Content-Length",
        "Transfer-Encoding",
        "Expect",
        "X-Forwarded-For",
        "Cookie",
        "",
        "x y",
        "x" * 9000,
        "\xff",
    ]
)
_first_line = _rarely(
    "GET /ws HTTP/1.1",
    "GET /ws HTTP/1.0",
    "GET /ws HTTP/2.0",
    "GET /ws HTTP/",
    "GET /ws",
    "GET  HTTP/1.1",
    "",
    "POST /ws HTTP/1.1",
    "HEAD /ws HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "\0 /ws HTTP/1.1",
    "GET http://[/ws HTTP/1.1",
    "GET /ws#part HTTP/1.1",
    "GET //ws HTTP/1.1",
    "GET /ws/../health HTTP/1.1",
    "GET /%77s?a=%ff HTTP/1.1",
    "GET /ws?redirect=http://evil.example HTTP/1.1",
    "GET /health HTTP/1.1",
    "GET /" + "x" * 20_000 + " HTTP/1.1",
    "PRI * HTTP/2.0",
)


def _shake(
    first: str, changes: list[tuple[str, str | None]], twice: bool, end: str, number: int
) -> bytes:
    headers = list(_HEADERS.items())
    for name, value in changes:
        if not twice:
            headers = [header for header in headers if header[0] != name]
        if value is not None:
            headers.append((name, value))
    lines = [first, *(f"{name}: {value}" for name, value in headers), "", ""]
    return _flip(end.join(lines).encode("latin-1"), number)


_handshake = st.builds(
    _shake,
    _first_line,
    st.lists(st.tuples(_names, st.one_of(st.none(), _values, _values)), max_size=3),
    st.booleans(),
    _rarely("\r\n", "\n", "\r"),
    st.integers(0, 2**16),
)

VISITS = st.builds(
    Visit,
    st.one_of(st.none(), st.none(), _handshake),
    _stream,
    st.sampled_from([None, None, None, 1, 3, 1000]),
    _rarely(True, False),
)
"""A client that does not keep to the rules."""


class Port:
    """A house with a port, and all the visits that it gets."""

    def __init__(self, directory: Path) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        self.house = House(directory)
        self.port, self.factory = make_server(self.house)
        self.messages = 0
        self._gone: list[weakref.ref[Any]] = []

    def receive(self, visit: Visit) -> None:
        """Take a client in, check how it is treated, and that it is gone in the end."""
        client = Client(self.port)
        client.stuck = not visit.reads
        self._gone.append(weakref.ref(client.protocol))
        if visit.handshake is None:
            client.open()
            if visit.reads:
                welcome = client.ask(type="hello", party="anna")
                must(welcome["type"] == "welcome", welcome)
            self._gone.append(weakref.ref(client.protocol))
            must(self._gone[-1]() is not None, "no websocket")
        else:
            client.raw(visit.handshake, visit.chop and max(visit.chop, len(visit.handshake) // 500))
        client.raw(visit.data, visit.chop and max(visit.chop, len(visit.data) // 500))
        code, messages = verdict(visit.data)
        self.messages += messages + 1
        if not client.gone:
            must(self.held(client) <= HELD, "so many bytes are held", self.held(client))
        if visit.reads:
            if visit.handshake is None:
                self.closed(client, code, messages)
            else:
                self.answered(client)
        for _ in range(4):
            self.house.clock.advance(SIGNS_OF_LIFE / 4)
            client.settle()
        must(client.gone, "nobody hung up", visit)
        must(not self.factory.connections and not self.port.protocols, "a connection is kept")

    def closed(self, client: Client, code: int | None, messages: int) -> None:
        """It was closed as it had to be, and all before that were pongs and answers."""
        closes = [came for came in client.frames if came[0] == CLOSE]
        got = int.from_bytes(closes[0][1][:2], "big") if closes else None
        must(len(closes) <= 1 and (not closes or client.frames[-1][0] == CLOSE), client.frames)
        must({opcode for opcode, _ in client.frames} <= {TEXT, PONG, CLOSE}, client.frames)
        policy = got == POLICY and messages >= MAX_BAD
        must(got == code or policy, "closed with", got, "and not with", code)
        internal = [came for came in client.frames if came[0] == TEXT and b'"internal"' in came[1]]
        must(not internal, internal)

    def answered(self, client: Client) -> None:
        """A handshake was answered with a status that blames the client, or not yet."""
        if client.status:
            # "HTTP/1.1 400 Bad Request"
            must(client.status.split(" ")[1].isdecimal(), client.status)
            must(int(client.status.split(" ")[1]) in STATUSES, client.status)

    def held(self, client: Client) -> int:
        """How many bytes of what it was sent the server holds."""
        protocol = client.protocol
        kept = [getattr(protocol, "data", b""), *getattr(protocol, "_text", ())]
        kept += getattr(protocol, "control_frame_data", None) or ()
        channel = getattr(protocol, "_channel", None)
        kept += getattr(channel, "_dataBuffer", ())
        kept.append(getattr(channel, "_buffer", b""))
        return sum(map(len, kept))

    def leave(self) -> None:
        """Nothing stays behind."""
        must(not self.house.desk.open_uploads, "uploads are open")
        must(not self.house.scheduler._jobs or self.house.pool.work, "jobs are left")
        must(not self.house.clock.getDelayedCalls(), self.house.clock.getDelayedCalls())

    def gone(self) -> Callable[[], int]:
        """Tells how many connections are still in memory; does not keep the port there."""
        return count(self._gone)


def entertain(directory: Path, visits: list[Visit]) -> Port:
    """A port, and all its visits; raises :exc:`tests.fuzz.Broken`, or what the port raises."""
    port = Port(directory)
    # Autobahn's timers run on the house's clock.
    loop, txaio.config.loop = txaio.config.loop, port.house.clock
    try:
        for visit in visits:
            port.receive(visit)
        port.leave()
    finally:
        txaio.config.loop = loop
        port.house.store.close()
    return port
