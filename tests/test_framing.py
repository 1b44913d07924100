"""RFC 6455's frames: lengths, pings and pongs, reserved bits and opcodes, and what is too long.

The tests with a number are the cases of that number of the Autobahn test suite for servers. It
sends what it wants to have echoed; here, what is sent as text is a request that is answered with
its ``ref``, and what is sent as binary is audio of an upload that must be kept as it was sent.
"""

from __future__ import annotations

import hashlib

from tests.memoryclient import BINARY, CLOSE, CONTINUATION, MASK, PING, PONG, TEXT, frame
from tests.websocketcase import Case, cases, request
from transcribed.wire import MAX_TEXT

AT_ONCE, BY_FRAME, BY_OCTET = "at once", "by frame", "by octet"
HELLO = frame(TEXT, request())
KIB, MIB = 1024, 1024 * 1024


def audio(size: int) -> bytes:
    """Bytes of which no two stretches are alike."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@cases(
    "check_text",
    {
        "1.1.2": (125,),
        "1.1.3": (126,),
        "1.1.4": (127,),
        "1.1.5": (128,),
        "1.1.6": (65535,),
        "1.1.7": (65536,),
        "1.1.8": (65536, 997),
    },
)
@cases(
    "check_audio",
    {
        "1.2.2": (125,),
        "1.2.3": (126,),
        "1.2.4": (127,),
        "1.2.5": (128,),
        "1.2.6": (65535,),
        "1.2.7": (65536,),
        "1.2.8": (65536, 997),
    },
)
class LengthTests(Case):
    """Every way to say how long a payload is."""

    def check_text(self, size: int, chop: int | None = None) -> None:
        payload = request(size=size)
        self.assertEqual(len(payload), size)
        self.anna.raw(frame(TEXT, payload), chop)
        self.assertEqual(self.anna.heard()["ref"], "r")
        self.assertAlive()

    def test_1_1_1(self) -> None:
        self.anna.raw(frame(TEXT, b""))
        self.assertEqual(self.anna.heard()["code"], "bad-message")
        self.assertAlive()

    def check_audio(self, size: int, chop: int | None = None) -> None:
        self.anna.say(type="submit", id="m", rate=8000)
        # Twice, so that an odd number of bytes is whole samples.
        data = audio(2 * size)
        self.anna.raw(frame(BINARY, data[:size]) + frame(BINARY, data[size:]), chop)
        digest = hashlib.sha256(data).hexdigest()
        answer = self.anna.ask(type="end", id="m", sha256=digest)
        self.assertEqual(answer.get("seconds"), round(size / 8000, 3), answer)

    def test_1_2_1(self) -> None:
        self.anna.say(type="submit", id="m")
        self.anna.raw(frame(BINARY, b""))
        self.assertEqual(self.anna.ask(type="end", id="m")["code"], "bad-audio")

    def test_lengths_in_more_bytes_than_needed(self) -> None:
        for size, width in ((5, 2), (125, 2), (5, 8), (125, 8), (126, 8), (65535, 8)):
            for opcode in (TEXT, BINARY):
                self.anna.raw(frame(opcode, bytes(size), width=width))
                self.assertClosed(1002)
                self.anna = self.connect()

    def test_lengths_beyond_63_bits(self) -> None:
        for length in (2**63, 2**64 - 1):
            self.anna.raw(frame(BINARY, b"x" * 100, length=length))
            self.assertEqual(self.anna.close_code(), 1002)
            self.advance(3)
            self.assertTrue(self.anna.gone)
            self.anna = self.connect()

    def test_unmasked(self) -> None:
        for opcode in (TEXT, BINARY, PING, PONG, CLOSE):
            self.anna.raw(frame(opcode, b"", mask=None))
            self.assertClosed(1002)
            self.anna = self.connect()

    def test_every_mask(self) -> None:
        for mask in (bytes(4), MASK, b"\xff" * 4, b"\0\0\0\1"):
            self.anna.raw(frame(TEXT, request(), mask=mask))
            self.assertEqual(self.anna.heard()["ref"], "r")


@cases(
    "check_ping",
    {
        "2.1": (b"",),
        "2.2": (b"Hello, world!",),
        "2.3": (b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff",),
        "2.4": (b"\xfe" * 125,),
        "2.6": (b"\xfe" * 125, BY_OCTET),
    },
)
@cases("check_pong", {"2.7": (b"",), "2.8": (b"unsolicited",)})
@cases("check_ten_pings", {"2.10": (AT_ONCE,), "2.11": (BY_OCTET,)})
class PingTests(Case):
    """Pings are answered, pongs are not."""

    def check_ping(self, payload: bytes, chop: str = AT_ONCE) -> None:
        self.send([frame(PING, payload)], chop)
        self.assertPong(payload)
        self.assertAlive()

    def test_2_5(self) -> None:
        self.anna.raw(frame(PING, b"\xfe" * 126))
        self.assertClosed(1002)

    def check_pong(self, payload: bytes) -> None:
        self.anna.raw(frame(PONG, payload))
        self.assertAlive()

    def test_2_9(self) -> None:
        self.send([frame(PONG, b"unsolicited"), frame(PING, b"solicited")])
        self.assertPong(b"solicited")
        self.assertAlive()

    def check_ten_pings(self, chop: str) -> None:
        self.send([frame(PING, b"payload-%d" % i) for i in range(10)], chop)
        for i in range(10):
            self.assertPong(b"payload-%d" % i)
        self.assertAlive()

    def test_pongs_for_who_does_not_read_are_bounded(self) -> None:
        self.anna.stuck = True
        for _ in range(50):
            self.anna.raw(frame(PING, b"x" * 125) * 100)
        self.assertLess(self.anna.transport.unsent, 70_000)
        self.anna.stuck = False
        self.anna.settle()
        self.assertGreater(len(self.anna.frames), 400)
        self.anna.frames.clear()
        self.send([frame(PING, b"again")])
        self.assertPong(b"again")

    def test_pings_of_any_length_are_not_collected(self) -> None:
        for opcode in (PING, PONG, CLOSE):
            self.anna.stubborn = True
            self.anna.raw(frame(opcode, b"", length=2**40))
            self.assertEqual(self.anna.close_code(), 1002)
            protocol = self.anna.protocol
            for _ in range(20):
                self.anna.raw(bytes(65536))
            held = sum(map(len, protocol.control_frame_data)) + len(protocol.data)
            self.assertLess(held, 1000)
            self.advance(3)
            self.assertTrue(self.anna.gone)
            self.anna = self.connect()


PAYLOAD = request("small")


@cases(
    "check_refused",
    {
        "3.1": (0, [frame(TEXT, PAYLOAD, rsv=1)]),
        "3.2": (1, [HELLO, frame(TEXT, PAYLOAD, rsv=2), frame(PING)]),
        "3.3": (1, [HELLO, frame(TEXT, PAYLOAD, rsv=3), frame(PING)], BY_FRAME),
        "3.4": (1, [HELLO, frame(TEXT, PAYLOAD, rsv=4), frame(PING)], BY_OCTET),
        "3.5": (0, [frame(BINARY, b"\0\xff\xfe", rsv=5)]),
        "3.6": (0, [frame(PING, b"Hello", rsv=6)]),
        "3.7": (0, [frame(CLOSE, b"", rsv=7)]),
        "4.1.1": (0, [frame(3)]),
        "4.1.2": (0, [frame(4, b"reserved")]),
        "4.1.3": (1, [HELLO, frame(5), frame(PING)]),
        "4.1.4": (1, [HELLO, frame(6, b"reserved"), frame(PING)], BY_FRAME),
        "4.1.5": (1, [HELLO, frame(7, b"reserved"), frame(PING)], BY_OCTET),
        "4.2.1": (0, [frame(11)]),
        "4.2.2": (0, [frame(12, b"reserved")]),
        "4.2.3": (1, [HELLO, frame(13), frame(PING)]),
        "4.2.4": (1, [HELLO, frame(14, b"reserved"), frame(PING)], BY_FRAME),
        "4.2.5": (1, [HELLO, frame(15, b"reserved"), frame(PING)], BY_OCTET),
    },
)
class ReservedTests(Case):
    """Bits and opcodes that mean nothing: what came before is answered, what comes after is not."""

    def check_refused(self, answers: int, frames: list[bytes], chop: str = AT_ONCE) -> None:
        self.send(frames, chop)
        for _ in range(answers):
            self.assertEqual(self.anna.heard()["ref"], "r")
        self.assertClosed(1002)

    def test_nothing_of_a_refused_frame_is_taken(self) -> None:
        self.send([frame(TEXT, b'{"type":"submit","id":"m"}', rsv=1), frame(TEXT, PAYLOAD)])
        self.assertClosed(1002)
        self.assertEqual(self.house.desk._uploads._uploads, {})


@cases("check_kept_text", {"9.1.1": (64 * KIB,), "10.1.1": (64 * KIB, 1300)})
@cases(
    "check_long_text",
    {
        "9.1.2": (256 * KIB,),
        "9.1.3": (MIB,),
        "9.1.4": (4 * MIB,),
        "9.1.5": (8 * MIB,),
        "9.1.6": (16 * MIB,),
        "9.3.1": (128 * KIB, 64),
        "9.3.2": (256 * KIB, 256),
        "9.3.3": (4 * MIB, KIB),
        "9.3.4": (4 * MIB, 4 * KIB),
        "9.3.5": (4 * MIB, 16 * KIB),
        "9.3.6": (4 * MIB, 64 * KIB),
        "9.3.7": (4 * MIB, 256 * KIB),
        "9.3.8": (4 * MIB, MIB),
        "9.3.9": (4 * MIB, 4 * MIB),
        "9.5.1": (MIB, None, 64),
        "9.5.2": (MIB, None, 128),
        "9.5.3": (MIB, None, 256),
        "9.5.4": (MIB, None, 512),
        "9.5.5": (MIB, None, 1024),
        "9.5.6": (MIB, None, 2048),
    },
)
@cases(
    "check_long_audio",
    {
        "9.2.1": (64 * KIB,),
        "9.2.2": (256 * KIB,),
        "9.2.3": (MIB,),
        "9.2.4": (4 * MIB,),
        "9.2.5": (8 * MIB,),
        "9.2.6": (16 * MIB,),
        # The suite sends 4 MiB in all of these; 4000 fragments of it will do.
        "9.4.1": (256 * KIB, 64),
        "9.4.2": (MIB, 256),
        "9.4.3": (4 * MIB, KIB),
        "9.4.4": (4 * MIB, 4 * KIB),
        "9.4.5": (4 * MIB, 16 * KIB),
        "9.4.6": (4 * MIB, 64 * KIB),
        "9.4.7": (4 * MIB, 256 * KIB),
        "9.4.8": (4 * MIB, MIB),
        "9.4.9": (4 * MIB, 4 * MIB),
        # And 1 MiB in all of these; 4000 pieces of it will do.
        "9.6.1": (256 * KIB, None, 64),
        "9.6.2": (512 * KIB, None, 128),
        "9.6.3": (MIB, None, 256),
        "9.6.4": (MIB, None, 512),
        "9.6.5": (MIB, None, 1024),
        "9.6.6": (MIB, None, 2048),
    },
)
@cases(
    "check_many_texts",
    {
        "9.7.2": (16,),
        "9.7.3": (64,),
        "9.7.4": (256,),
        "9.7.5": (KIB,),
        "9.7.6": (4 * KIB,),
    },
)
@cases(
    "check_many_frames",
    {
        "9.8.1": (0,),
        "9.8.2": (16,),
        "9.8.3": (64,),
        "9.8.4": (256,),
        "9.8.5": (KIB,),
        "9.8.6": (4 * KIB,),
    },
)
class LimitTests(Case):
    """Text has a limit, audio only what ``welcome`` says, and neither is held as a whole."""

    def fragments(self, opcode: int, payload: bytes, size: int | None) -> bytes:
        if size is None:
            return frame(opcode, payload)
        starts = range(0, len(payload), size)
        return b"".join(
            frame(
                CONTINUATION if start else opcode,
                payload[start : start + size],
                fin=start + size >= len(payload),
            )
            for start in starts
        )

    def check_kept_text(self, size: int, fragment: int | None = None) -> None:
        self.anna.raw(self.fragments(TEXT, request(size=size), fragment))
        self.assertEqual(self.anna.heard()["ref"], "r")
        self.assertAlive()

    def check_long_text(
        self, size: int, fragment: int | None = None, chop: int | None = None
    ) -> None:
        data = self.fragments(TEXT, request(size=size), fragment)
        # As much as is needed to see that it is too long, whatever is still to come.
        first = data[: MAX_TEXT * 5 // 4] if fragment and fragment <= MAX_TEXT else data[:14]
        self.anna.stubborn = True
        self.anna.raw(first, chop)
        self.assertEqual(self.anna.close_code(), 1009)
        protocol = self.anna.protocol
        self.anna.raw(data[len(first) :], chop)
        self.assertLess(sum(map(len, protocol._text)) + len(protocol.data), MAX_TEXT + 1)
        self.assertEqual(self.anna.frames, [])

    def check_long_audio(
        self, size: int, fragment: int | None = None, chop: int | None = None
    ) -> None:
        data = audio(size)
        self.anna.say(type="submit", id="m", rate=48000, channels=2)
        self.anna.raw(self.fragments(BINARY, data, fragment), chop)
        digest = hashlib.sha256(data).hexdigest()
        answer = self.anna.ask(type="end", id="m", sha256=digest)
        self.assertEqual(answer.get("seconds"), round(size / 4 / 48000, 3), answer)

    def check_many_texts(self, size: int) -> None:
        payload = b'{"type":"list"}'.ljust(size) if size < 40 else request(size=size)
        for _ in range(200):
            self.anna.raw(frame(TEXT, payload))
            self.assertEqual(self.anna.heard()["type"], "listing")

    def test_9_7_1(self) -> None:
        for _ in range(200):
            self.anna.raw(frame(TEXT, b""))
            self.assertEqual(self.anna.heard()["code"], "bad-message")
            self.assertAlive()

    def check_many_frames(self, size: int) -> None:
        data = audio(size)
        self.anna.say(type="submit", id="m", rate=48000)
        for _ in range(1000):
            self.anna.raw(frame(BINARY, data))
        digest = hashlib.sha256(data * 1000).hexdigest()
        answer = self.anna.ask(type="end", id="m", sha256=digest)
        self.assertEqual(answer["type"], "accepted" if size else "error")
