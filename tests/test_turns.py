"""What came in one read is worked on in turns, and no sooner than the session takes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import House
from tests.memoryclient import BINARY, CLOSE, PING, PONG, TEXT, close_frame, frame
from tests.websocketcase import BOUNDS, Case, request
from transcribed import requests
from transcribed.websocket import TURN


class TurnTests(Case):
    """One client's thousands of small frames."""

    def read(self, *frames: bytes) -> None:
        """The server reads, and what it writes is sent; nothing else has its turn."""
        self.anna.transport.protocol.dataReceived(b"".join(frames))
        self.anna.transport.end_turn()

    def test_pings(self) -> None:
        payloads = [b"%d" % n for n in range(10 * TURN)]
        self.read(*(frame(PING, payload) for payload in payloads))
        self.assertEqual(len(self.anna.frames), TURN // 2)
        self.assertTrue(self.anna.transport.paused)
        bjorn = self.connect("bjorn")
        self.assertEqual(bjorn.ask(type="list")["type"], "listing")
        self.anna.settle()
        self.assertEqual(self.anna.frames, [(PONG, payload) for payload in payloads])
        self.assertFalse(self.anna.transport.paused)
        bjorn.vanish()

    def test_empty_frames(self) -> None:
        """The turn ends within the last one, behind which nothing comes."""
        self.anna.say(type="submit", id="m")
        whole = frame(BINARY, b"12")
        self.read(whole[:-1])
        self.read(whole[-1:], *[frame(BINARY, b"")] * (TURN // 2))
        self.assertTrue(self.anna.transport.paused)
        self.anna.settle()
        self.assertFalse(self.anna.transport.paused)
        self.assertEqual(self.anna.ask(type="cancel", id="m")["type"], "cancelled")

    def test_who_goes(self) -> None:
        self.read(*[frame(PING)] * TURN)
        self.anna.vanish()
        self.assertEqual(self.house.clock.getDelayedCalls(), [])

    def test_what_fails(self) -> None:
        """It ends the connection, as it would in the first turn."""

        def fail(payload: bytes) -> None:
            raise ValueError

        self.patch(self.anna.protocol._session, "text", fail)
        self.read(*[frame(PING)] * TURN, frame(TEXT, request()))
        self.anna.settle()
        self.assertTrue(self.anna.gone)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_who_closes(self) -> None:
        """TLS only ends when the other side's last word is read."""
        self.read(*[frame(PING)] * TURN, close_frame(1000))
        self.assertTrue(self.anna.transport.paused)
        self.anna.settle()
        self.assertTrue(self.anna.gone)
        self.assertFalse(self.anna.transport.paused)

    def test_who_is_closed(self) -> None:
        """Of who has sent nonsense, the rest is read and left."""
        self.anna.stubborn = True
        self.read(*[frame(PING)] * TURN, frame(TEXT, b"\xff"), *[frame(PING)] * TURN)
        self.anna.settle()
        pongs, rest = self.anna.frames[:TURN], self.anna.frames[TURN:]
        self.assertEqual({opcode for opcode, _ in pongs}, {PONG})
        self.assertEqual([opcode for opcode, _ in rest], [CLOSE])
        self.anna.raw(close_frame(1000))
        self.assertTrue(self.anna.gone)


class ListTests(SynchronousTestCase):
    """A long list is written out bit by bit."""

    def test_long(self) -> None:
        self.patch(requests, "LISTED_AT_ONCE", 3)
        house = House(Path(self.mktemp()))
        ids = [f"m{n}" for n in range(7)]
        anna = house.party("anna")
        for id in ids:
            anna.submit(id, b"\1\0")
        anna.say(type="list")
        self.assertFalse(anna.sent)
        house.clock.advance(0)
        self.assertEqual({t["id"] for t in anna.heard()["transcripts"]}, set(ids))
        anna.say(type="list")
        anna.session.lost()
        house.clock.advance(0)
        self.assertFalse(anna.sent)


class WorkTests(Case):
    """What comes behind a request that takes its time."""

    def setUp(self) -> None:
        super().setUp()
        self.kept: list[Callable[[], object]] = []
        at_once = self.house.store.pool.runInteraction

        def later(work: Callable[[Any], Any]) -> Deferred[Any]:
            outcome: Deferred[Any] = Deferred()
            self.kept.append(lambda: at_once(work).chainDeferred(outcome))
            return outcome

        self.patch(self.house.store.pool, "runInteraction", later)

    def finish(self) -> None:
        """The store answers what it was asked."""
        self.kept.pop(0)()
        self.anna.settle()

    def assertHeard(self, *expected: str) -> None:
        """So many answers came, in this order: refs, and pongs' payloads."""
        frames, self.anna.frames = self.anna.frames, []
        heard = [
            payload.decode() if opcode == PONG else json.loads(payload)["ref"]
            for opcode, payload in frames
        ]
        self.assertEqual(heard, list(expected))

    def test_it_waits(self) -> None:
        self.anna.raw(frame(TEXT, request("1")) + frame(PING, b"2") + frame(TEXT, request("3")))
        self.assertEqual(len(self.kept), 1)
        self.assertTrue(self.anna.transport.paused)
        self.assertHeard()
        self.finish()
        self.assertHeard("1", "2")
        self.finish()
        self.assertHeard("3")
        self.assertFalse(self.anna.transport.paused)
        self.assertEqual(self.kept, [])

    def test_what_is_read_all_the_same(self) -> None:
        """TLS hands over what it has decrypted, paused or not."""
        self.anna.raw(frame(TEXT, request("1")))
        more = frame(PING, b"2")
        for part in (more[:3], more[3:] + frame(TEXT, request("3"))[:9]):
            self.anna.transport.protocol.dataReceived(part)
        self.assertHeard()
        self.finish()
        self.assertHeard("1", "2")
        self.anna.raw(frame(TEXT, request("3"))[9:])
        self.finish()
        self.assertHeard("3")

    def test_a_close(self) -> None:
        """Who asks and closes is answered first."""
        self.anna.raw(frame(TEXT, request("1")) + close_frame(1000))
        self.assertFalse(self.anna.gone)
        self.finish()
        close = self.anna.frames.pop()
        self.assertEqual(close[0], CLOSE)
        self.assertHeard("1")
        self.assertTrue(self.anna.gone)

    def test_a_pong(self) -> None:
        """It is not missed while nothing is read."""
        self.anna.raw(frame(TEXT, request("1")))
        for _ in range(3):
            self.advance(BOUNDS.ping_seconds)
        ((opcode, payload),) = self.anna.frames
        self.assertEqual((opcode, self.anna.gone), (PING, False))
        self.anna.frames = []
        self.anna.raw(frame(PONG, payload))
        self.finish()
        self.assertHeard("1")
        self.advance(BOUNDS.ping_seconds)
        ((opcode, _),) = self.anna.frames
        self.assertEqual((opcode, self.anna.gone), (PING, False))
        self.advance(BOUNDS.ping_seconds)
        self.assertTrue(self.anna.gone, "this one was not answered")

    def test_who_goes(self) -> None:
        """What it had asked besides is not begun."""
        self.anna.raw(frame(TEXT, request("1")) + frame(TEXT, request("2")))
        self.anna.vanish()
        self.finish()
        self.assertEqual((self.kept, self.anna.frames), ([], []))
