"""UTF-8 in text frames: what is valid is taken, what is not ends the connection where it stands.

The tests with a number are the cases of that number of the Autobahn test suite for servers; most
sequences are those of Markus Kuhn's "UTF-8 decoder capability and stress test". Each is sent as the
``ref`` of a request: in one frame, octet by octet, and in fragments of an octet each.
"""

from __future__ import annotations

from itertools import pairwise, product

from tests.memoryclient import CONTINUATION, PING, TEXT, frame, is_start
from tests.websocketcase import Case, cases

# The omicron with its accent is the one of three octets.
GREEK = "κ\u1f79σμε".encode()
TOO_HIGH = b"\xf4\x90\x80\x80"
SURROGATE = b"\xed\xa0\x80"
EDITED = b"edited"
HEAD, TAIL = b'{"type":"list","ref":"', b'"}'


def fragments(payload: bytes, cuts: list[int]) -> list[bytes]:
    """A text message in fragments that end at `cuts` and at its end."""
    ends = [*cuts, len(payload)]
    starts = [0, *cuts]
    return [
        frame(CONTINUATION if i else TEXT, payload[start:end], fin=i == len(cuts))
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def single(first: int, last: int, ends: bytes = b" ") -> bytes:
    """All octets of a range, each with `ends` after it."""
    return b"".join(bytes([octet]) + ends for octet in range(first, last + 1))


def surrogates(*units: int) -> bytes:
    """UTF-16 units as if each were a character."""
    return b"".join(bytes([0xED, 0x80 | unit >> 6 & 0x3F, 0x80 | unit & 0x3F]) for unit in units)


def points(*points: int) -> tuple[bytes]:
    """Characters."""
    return ("".join(map(chr, points)).encode(),)


INCOMPLETE = [
    b"\xc0",
    b"\xe0\x80",
    b"\xf0\x80\x80",
    b"\xf8\x80\x80\x80",
    b"\xfc\x80\x80\x80\x80",
    b"\xdf",
    b"\xef\xbf",
    b"\xf7\xbf\xbf",
    b"\xfb\xbf\xbf\xbf",
    b"\xfd\xbf\xbf\xbf\xbf",
]
"""The first and the last sequences of each length, all without their last octet."""

VALID = {
    "6.1.1": (b"",),
    "6.2.1": ("Hello-µ@ßöäüàá-UTF-8!!".encode(),),
    "6.2.4": (GREEK,),
    "6.5.1": (GREEK,),
    "6.5.2": (GREEK[:5],),
    "6.5.3": (GREEK[:7],),
    "6.5.4": (GREEK[:9],),
    "6.5.5": (GREEK * 20,),
    "6.6.2": (GREEK[:2],),
    "6.6.5": (GREEK[:5],),
    "6.6.7": (GREEK[:7],),
    "6.6.9": (GREEK[:9],),
    "6.6.11": (GREEK,),
    "6.7.1": points(0),
    "6.7.2": points(0x80),
    "6.7.3": points(0x800),
    "6.7.4": points(0x10000),
    "6.9.1": points(0x7F),
    "6.9.2": points(0x7FF),
    "6.9.3": points(0xFFFF),
    "6.9.4": points(0x10FFFF),
    "6.11.1": points(0xD7FF),
    "6.11.2": points(0xE000),
    "6.11.3": points(0xFFFD),
    "6.11.4": points(0x10FFFF),
    # The two characters at the end of each plane are for nobody to use, but they may be sent.
    **{
        f"6.22.{number}": points(plane << 16 | 0xFFFE | number + 1 & 1)
        for plane in range(17)
        for number in (2 * plane + 1, 2 * plane + 2)
    },
    **{f"6.23.{number}": points(0xFFF8 + number) for number in range(1, 8)},
}

INVALID = {
    "6.3.1": (GREEK + SURROGATE + EDITED,),
    "6.3.2": (GREEK + TOO_HIGH + EDITED,),
    **{f"6.6.{size}": (GREEK[:size],) for size in (1, 3, 4, 6, 8, 10)},
    "6.8.1": (b"\xf8\x88\x80\x80\x80",),
    "6.8.2": (b"\xfc\x84\x80\x80\x80\x80",),
    "6.10.1": (b"\xf7\xbf\xbf\xbf",),
    "6.10.2": (b"\xfb\xbf\xbf\xbf\xbf",),
    "6.10.3": (b"\xfd\xbf\xbf\xbf\xbf\xbf",),
    "6.11.5": (TOO_HIGH,),
    # Continuations of nothing.
    "6.12.1": (b"\x80",),
    "6.12.2": (b"\xbf",),
    **{f"6.12.{size + 1}": ((b"\x80\xbf" * 3)[:size],) for size in range(2, 7)},
    "6.12.8": (single(0x80, 0xBF, b""),),
    # Starts of which nothing follows.
    "6.13.1": (single(0xC0, 0xDF),),
    "6.13.2": (single(0xE0, 0xEF),),
    "6.13.3": (single(0xF0, 0xF7),),
    "6.13.4": (single(0xF8, 0xFB),),
    "6.13.5": (single(0xFC, 0xFD),),
    **{f"6.14.{number}": (octets,) for number, octets in enumerate(INCOMPLETE, 1)},
    "6.15.1": (b"".join(INCOMPLETE),),
    # Octets that are in no UTF-8.
    "6.16.1": (b"\xfe",),
    "6.16.2": (b"\xff",),
    "6.16.3": (b"\xfe\xfe\xff\xff",),
    # A slash in more octets than it needs.
    "6.17.1": (b"\xc0\xaf",),
    "6.17.2": (b"\xe0\x80\xaf",),
    "6.17.3": (b"\xf0\x80\x80\xaf",),
    "6.17.4": (b"\xf8\x80\x80\x80\xaf",),
    "6.17.5": (b"\xfc\x80\x80\x80\x80\xaf",),
    # The last characters that need fewer octets.
    "6.18.1": (b"\xc1\xbf",),
    "6.18.2": (b"\xe0\x9f\xbf",),
    "6.18.3": (b"\xf0\x8f\xbf\xbf",),
    "6.18.4": (b"\xf8\x87\xbf\xbf\xbf",),
    "6.18.5": (b"\xfc\x83\xbf\xbf\xbf\xbf",),
    # NUL in more octets than it needs.
    "6.19.1": (b"\xc0\x80",),
    "6.19.2": (b"\xe0\x80\x80",),
    "6.19.3": (b"\xf0\x80\x80\x80",),
    "6.19.4": (b"\xf8\x80\x80\x80\x80",),
    "6.19.5": (b"\xfc\x80\x80\x80\x80\x80",),
    # Halves of surrogate pairs, alone and together.
    **{
        f"6.20.{number}": (surrogates(unit),)
        for number, unit in enumerate((0xD800, 0xDB7F, 0xDB80, 0xDBFF, 0xDC00, 0xDF80, 0xDFFF), 1)
    },
    **{
        f"6.21.{number}": (surrogates(high, low),)
        for number, (high, low) in enumerate(
            product((0xD800, 0xDB7F, 0xDB80, 0xDBFF), (0xDC00, 0xDFFF)), 1
        )
    },
}


@cases("check_valid", VALID)
class ValidTests(Case):
    """Any characters may be sent. (In JSON, control characters must be written otherwise.)"""

    def check_valid(self, payload: bytes) -> None:
        message = HEAD + payload + TAIL
        for wire, chop in (
            (frame(TEXT, message), None),
            (frame(TEXT, message), 1),
            (b"".join(fragments(message, list(range(1, len(message))))), None),
        ):
            self.anna.raw(wire, chop)
            answer = self.anna.heard()
            if payload < b" " and payload:
                self.assertEqual(answer["code"], "bad-message")
            else:
                self.assertEqual(answer["ref"], payload.decode())
        self.assertAlive()

    def test_6_1_2(self) -> None:
        self.send(fragments(b"", [0, 0]))
        self.assertEqual(self.anna.heard()["code"], "bad-message")
        self.assertAlive()

    def test_6_1_3(self) -> None:
        message = HEAD + b"middle" + TAIL
        self.send(fragments(message, [0, len(message)]))
        self.assertEqual(self.anna.heard()["ref"], "middle")

    def test_6_2_2(self) -> None:
        text = "Hello-µ@ßöäüàá-UTF-8!!"
        border = len(HEAD + text[:12].encode())
        self.send(fragments(HEAD + text.encode() + TAIL, [border]))
        self.assertEqual(self.anna.heard()["ref"], text)

    def test_6_2_3(self) -> None:
        message = HEAD + "Hello-µ@ßöäüàá-UTF-8!!".encode() + TAIL
        pieces = fragments(message, list(range(1, len(message))))
        self.send([piece + frame(PING) for piece in pieces[:-1]] + pieces[-1:])
        self.assertEqual(len(self.anna.frames), len(message))
        self.assertIn(b"UTF-8!!", self.anna.frames[-1][1])


@cases("check_invalid", INVALID)
@cases(
    "check_fails_fast",
    {
        "6.4.1": ([GREEK, TOO_HIGH, EDITED], True),
        "6.4.2": ([GREEK + TOO_HIGH[:1], TOO_HIGH[1:2], TOO_HIGH[2:] + EDITED], True),
        "6.4.3": ([GREEK, TOO_HIGH, EDITED], False),
        "6.4.4": ([GREEK + TOO_HIGH[:1], TOO_HIGH[1:2], TOO_HIGH[2:] + EDITED], False),
    },
)
class InvalidTests(Case):
    """The first octet that cannot be right ends the connection, wherever it stands."""

    def check_invalid(self, payload: bytes) -> None:
        message = HEAD + payload + TAIL
        bad = next(i for i in range(len(message)) if not is_start(message[: i + 1]))
        self.assertGreaterEqual(bad, len(HEAD))
        whole = frame(TEXT, message)
        header = len(whole) - len(message)
        for pieces in (
            [whole[: header + bad], whole[header + bad : header + bad + 1]],
            fragments(message, list(range(1, len(message))))[: bad + 1],
        ):
            self.send(pieces[:-1])
            self.assertEqual(self.anna.frames, [])
            self.assertFalse(self.anna.gone)
            self.anna.stubborn = True
            self.anna.raw(pieces[-1])
            self.assertEqual(self.anna.close_code(), 1007)
            self.advance(3)
            self.assertTrue(self.anna.gone)
            self.anna = self.connect()
        self.anna.raw(whole)
        self.assertClosed(1007)

    def check_fails_fast(self, pieces: list[bytes], fragmented: bool) -> None:
        first, second, third = pieces
        message = HEAD + first + second + third + TAIL
        cuts = [len(HEAD + first), len(HEAD + first + second)]
        if fragmented:
            wire = fragments(message, cuts)
        else:
            whole = frame(TEXT, message)
            header = len(whole) - len(message)
            ends = [0, *(header + cut for cut in cuts), len(whole)]
            wire = [whole[a:b] for a, b in pairwise(ends)]
        self.anna.raw(wire[0])
        self.assertEqual(self.anna.frames, [])
        self.anna.stubborn = True
        self.anna.raw(wire[1])
        self.assertEqual(self.anna.close_code(), 1007)

    def test_an_end_within_a_character(self) -> None:
        for size in (1, 3, 4):
            self.anna.raw(frame(TEXT, HEAD + GREEK[:size]))
            self.assertClosed(1007)
            self.anna = self.connect()

    def test_binary_frames_may_be_anything(self) -> None:
        self.anna.say(type="submit", id="m")
        self.anna.raw(b"".join(frame(2, payload * 2) for (payload,) in INVALID.values()))
        self.assertEqual(self.anna.ask(type="end", id="m")["type"], "accepted")
