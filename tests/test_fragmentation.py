"""RFC 6455's fragments: messages in pieces, control frames between them, and pieces of nothing.

The tests with a number are the cases of that number of the Autobahn test suite for servers; see
tests/test_framing.py.
"""

from __future__ import annotations

from tests.memoryclient import BINARY, CONTINUATION, PING, PONG, TEXT, frame
from tests.websocketcase import Case, cases, request

AT_ONCE, BY_FRAME, BY_OCTET = "at once", "by frame", "by octet"
MESSAGE = request("in fragments")
FIRST = frame(TEXT, MESSAGE[:9], fin=False)
LAST = frame(CONTINUATION, MESSAGE[9:])
WHOLE = frame(TEXT, MESSAGE)
CHOPS = (AT_ONCE, BY_FRAME, BY_OCTET)
STRAY = frame(CONTINUATION, b"of nothing")
STRAY_OPEN = frame(CONTINUATION, b"of nothing", fin=False)


def numbered(first: int, *arguments: object) -> dict[str, tuple[object, ...]]:
    """Three cases that differ in how the frames are chopped."""
    return {f"5.{first + i}": (chop, *arguments) for i, chop in enumerate(CHOPS)}


@cases("check_message", numbered(3, [FIRST, LAST], []))
@cases("check_message", numbered(6, [FIRST, frame(PING, b"between"), LAST], [b"between"]))
@cases(
    "check_five_fragments",
    {"5.19": (AT_ONCE,), "5.20": (BY_FRAME,)},
)
class FragmentTests(Case):
    """A message may come in pieces, with pings between them."""

    def check_message(self, chop: str, frames: list[bytes], pongs: list[bytes]) -> None:
        self.send(frames, chop)
        for payload in pongs:
            self.assertPong(payload)
        self.assertEqual(self.anna.heard()["ref"], "in fragments")
        self.assertAlive()

    def check_five_fragments(self, chop: str) -> None:
        pieces = [MESSAGE[i : i + 9] for i in range(0, 36, 9)] + [MESSAGE[36:]]
        first, second, third, fourth, fifth = [
            frame(CONTINUATION if i else TEXT, piece, fin=i == 4) for i, piece in enumerate(pieces)
        ]
        self.send([first, second, frame(PING, b"pongme 1"), third], chop)
        self.assertPong(b"pongme 1")
        self.advance(1)
        self.assertEqual(self.anna.frames, [])
        self.send([fourth, frame(PING, b"pongme 2"), fifth], chop)
        self.assertPong(b"pongme 2")
        self.assertEqual(self.anna.heard()["ref"], "in fragments")
        self.assertAlive()

    def test_audio_in_fragments(self) -> None:
        self.anna.say(type="submit", id="m")
        frames = [frame(BINARY, b"\1", fin=False), frame(PING), frame(PONG)]
        self.send([*frames, frame(CONTINUATION, b"", fin=False), frame(CONTINUATION, b"\0")])
        self.assertPong(b"")
        self.assertEqual(self.anna.ask(type="end", id="m")["type"], "accepted")

    def test_fragments_of_audio_where_none_is_open_are_one_bad_message(self) -> None:
        more = frame(CONTINUATION, b"\0\0", fin=False)
        self.send([frame(BINARY, b"\0\0", fin=False), *[more] * 20, frame(CONTINUATION)])
        self.assertEqual(self.anna.heard()["code"], "bad-message")
        self.assertAlive()


@cases("check_refused", numbered(9, 0, [STRAY, WHOLE]))
@cases("check_refused", numbered(12, 0, [STRAY_OPEN, WHOLE]))
@cases(
    "check_refused",
    {
        # Control frames are never in fragments.
        "5.1": (AT_ONCE, 0, [frame(PING, b"fragment", fin=False), frame(CONTINUATION, b"2")]),
        "5.2": (AT_ONCE, 0, [frame(PONG, b"fragment", fin=False), frame(CONTINUATION, b"2")]),
        # After a whole message there is nothing to continue.
        "5.15": (AT_ONCE, 1, [FIRST, LAST, STRAY_OPEN, WHOLE]),
        "5.16": (AT_ONCE, 0, [STRAY_OPEN, FIRST, LAST] * 2),
        "5.17": (AT_ONCE, 0, [STRAY, FIRST, LAST] * 2),
        # A message begins before another one has ended.
        "5.18": (AT_ONCE, 0, [FIRST, frame(TEXT, MESSAGE[9:])]),
    },
)
class StrayTests(Case):
    """Pieces of nothing end the connection."""

    def check_refused(self, chop: str, answers: int, frames: list[bytes]) -> None:
        self.send(frames, chop)
        for _ in range(answers):
            self.assertEqual(self.anna.heard()["ref"], "in fragments")
        self.assertClosed(1002)

    def test_audio_within_a_text(self) -> None:
        self.send([FIRST, frame(BINARY, b"\0\0"), LAST])
        self.assertClosed(1002)

    def test_a_text_within_audio(self) -> None:
        self.anna.say(type="submit", id="m")
        self.send([frame(BINARY, b"\0\0", fin=False), WHOLE])
        self.assertClosed(1002)
        self.assertEqual(self.house.spool.names(), [])

    def test_an_empty_control_frame_in_fragments(self) -> None:
        self.send([FIRST, frame(PING, fin=False), LAST])
        self.assertClosed(1002)


class EmptyTests(Case):
    """Fragments without a byte."""

    def test_without_end(self) -> None:
        """They count for no limit, and are not kept."""
        self.send([frame(TEXT, b"", fin=False)])
        self.send([frame(CONTINUATION, b"", fin=False)] * 5000)
        self.assertEqual(self.anna.protocol._text, [])
        self.send([frame(CONTINUATION, b'{"type": "list"}')])
        self.assertEqual(self.anna.heard()["type"], "listing")
