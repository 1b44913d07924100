"""RFC 6455's closing: who says what last, what is said after it, and that nobody stays behind.

The tests with a number are the cases of that number of the Autobahn test suite for servers; see
tests/test_framing.py.
"""

from __future__ import annotations

import gc
import weakref

from tests.memoryclient import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    Client,
    close_frame,
    frame,
    handshake,
)
from tests.websocketcase import Case, cases, request

HELLO = frame(TEXT, request("before"))
NORMAL = close_frame(1000)


@cases(
    "check_after_close",
    {
        "7.1.1": (True, [HELLO, NORMAL]),
        "7.1.2": (False, [NORMAL, NORMAL]),
        "7.1.3": (False, [NORMAL, frame(PING, b"late")]),
        "7.1.4": (False, [NORMAL, HELLO]),
        "7.1.5": (
            False,
            [frame(TEXT, request()[:9], fin=False), NORMAL, frame(CONTINUATION, b"x")],
        ),
        "7.1.6": (True, [HELLO, frame(BINARY, b""), NORMAL, HELLO, frame(PING)]),
    },
)
@cases(
    "check_close",
    {
        "7.3.1": (frame(CLOSE), 1000),
        "7.3.2": (frame(CLOSE, b"\3"), 1002),
        "7.3.3": (NORMAL, 1000),
        "7.3.4": (close_frame(1000, b"Hello, world!"), 1000),
        "7.3.5": (close_frame(1000, b"x" * 123), 1000),
        "7.3.6": (close_frame(1000, b"x" * 124), 1002),
        "7.5.1": (close_frame(1000, "κόσμε".encode() + b"\xed\xa0\x80edited"), 1007),
    },
)
@cases(
    "check_good_code",
    {
        f"7.7.{number}": (code,)
        for number, code in enumerate(
            (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999), 1
        )
    },
)
@cases(
    "check_bad_code",
    {
        f"7.9.{number}": (code,)
        for number, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 1015), 1)
    },
)
@cases("check_bad_code", {"7.13.1": (5000,), "7.13.2": (65535,)})
class CloseTests(Case):
    """The client closes."""

    def check_after_close(self, answered: bool, frames: list[bytes]) -> None:
        self.send(frames)
        if answered:
            self.assertEqual(self.anna.heard()["ref"], "before")
        if frames[1:2] == [frame(BINARY, b"")]:
            self.assertEqual(self.anna.heard()["code"], "bad-message")
        self.assertClosed(1000)

    def check_close(self, close: bytes, code: int) -> None:
        self.anna.stubborn = True
        self.anna.raw(close)
        self.assertClosed(code)

    def check_good_code(self, code: int) -> None:
        for reason in (b"", b"as said"):
            self.anna.raw(close_frame(code, reason))
            self.assertClosed(1000)
            self.anna = self.connect()

    def check_bad_code(self, code: int) -> None:
        self.anna.stubborn = True
        self.anna.raw(close_frame(code))
        self.assertClosed(1002)

    def test_a_big_recording_and_then_the_close(self) -> None:
        self.anna.say(type="submit", id="m")
        self.send([frame(BINARY, bytes(256 * 1024)), HELLO, NORMAL, HELLO, frame(PING)])
        self.assertEqual(self.anna.heard()["ref"], "before")
        self.assertClosed(1000)
        self.assertEqual(self.house.spool.names(), [])

    def test_a_close_by_octet(self) -> None:
        self.send([close_frame(1000, b"bye")], "by octet")
        self.assertClosed(1000)

    def test_in_the_middle_of_a_frame(self) -> None:
        self.anna.raw(frame(TEXT, request())[:9])
        self.anna.vanish()
        self.assertEqual(self.factory.connections, set())


class ServerTests(Case):
    """The server closes."""

    def bad(self) -> None:
        for _ in range(10):
            self.anna.raw(frame(TEXT, b"{}"))
        for _ in range(10):
            self.assertEqual(self.anna.heard()["code"], "bad-message")

    def test_the_answer_to_its_close_ends_it(self) -> None:
        self.bad()
        self.assertClosed(1008)

    def test_an_answer_with_another_code(self) -> None:
        self.anna.stubborn = True
        self.bad()
        self.assertFalse(self.anna.gone)
        self.anna.raw(close_frame(3000, b"fine"))
        self.assertClosed(1008)

    def test_what_comes_before_the_answer_is_not_heard(self) -> None:
        self.anna.stubborn = True
        self.bad()
        self.assertEqual(self.anna.close_code(), 1008)
        self.send([HELLO, frame(PING, b"?"), frame(BINARY, bytes(200_000)), HELLO])
        self.assertEqual(self.anna.frames, [])
        self.assertFalse(self.anna.gone)
        self.anna.raw(NORMAL)
        self.assertTrue(self.anna.gone)

    def test_no_answer(self) -> None:
        self.anna.stubborn = True
        self.bad()
        self.assertEqual(self.anna.close_code(), 1008)
        self.advance(3)
        self.assertTrue(self.anna.gone)

    def test_rubbish_for_an_answer(self) -> None:
        self.anna.stubborn = True
        self.bad()
        self.anna.raw(frame(TEXT, b"\xff", rsv=7, mask=None))
        self.assertClosed(1008)


class NobodyStaysTests(Case):
    """A connection that is over does not stay, whatever the client does or leaves undone."""

    def test_a_client_that_closes_and_reads_nothing(self) -> None:
        self.anna.stuck = True
        self.anna.raw(HELLO + NORMAL)
        self.assertFalse(self.anna.gone)
        self.advance(10)
        self.assertTrue(self.anna.gone)

    def test_a_client_that_breaks_the_rules_and_reads_nothing(self) -> None:
        for data in (frame(3) * 2, frame(TEXT, b"\xff"), close_frame(999)):
            self.anna.stuck = True
            self.anna.raw(data)
            self.advance(10)
            self.assertTrue(self.anna.gone)
            self.anna = self.connect()

    def test_a_handshake_that_is_refused_and_its_answer_not_read(self) -> None:
        client = Client(self.port)
        client.stuck = True
        client.raw(handshake(sec_websocket_version="12"))
        self.assertFalse(client.gone)
        self.house.clock.advance(10)
        client.settle()
        self.assertTrue(client.gone)

    def test_what_comes_after_the_end_is_not_kept(self) -> None:
        self.anna.stuck = True
        self.anna.raw(NORMAL)
        # TLS still delivers then: until the client says at that level, too, that it is done.
        protocol = self.anna.protocol
        for _ in range(20):
            protocol.dataReceived(bytes(65536))
        self.assertLess(len(protocol.data), 65537)
        self.advance(10)

    def test_nothing_of_a_connection_is_left(self) -> None:
        for end in (
            lambda: self.anna.raw(NORMAL),
            lambda: self.anna.raw(frame(3)),
            lambda: self.anna.vanish(),
        ):
            self.anna.say(type="subscribe")
            self.anna.say(type="fetch", id="m")
            self.anna.say(type="submit", id="m")
            self.anna.raw(frame(BINARY, bytes(1000)))
            left = weakref.ref(self.anna.protocol)
            end()
            self.assertEqual(self.house.desk._watchers, {})
            self.anna = self.connect()
            gc.collect()
            self.assertIsNone(left())
