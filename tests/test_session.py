"""The session: hello, submitting, bad messages, the order of answers."""

from __future__ import annotations

import errno
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from tests.fakes import MODEL, FakePool, House
from tests.sessioncase import SECOND, Case


class HelloTests(Case):
    """hello comes first."""

    def test_welcome(self) -> None:
        party = self.house.party(None)
        answer = party.ask(type="hello", party="anna", token="anything", ref="r")
        self.assertEqual(
            answer,
            {
                "type": "welcome",
                "party": "anna",
                "server": "transcribed/test",
                "model": "fake",
                "limits": {"seconds": 100.0, "bytes": 100 * 48000 * 4},
                "ref": "r",
            },
        )
        self.assertIsNone(party.closed)

    def test_anything_else_first(self) -> None:
        for message in (
            {"type": "list", "ref": "r"},
            {"type": "submit", "id": "m"},
            {"type": "end", "id": "m"},
            {"type": "nonsense", "ref": "r"},
            {"type": "hello"},
        ):
            party = self.house.party(None)
            answer = party.ask(**message)
            self.assertError(answer, "unauthenticated")
            self.assertEqual(answer.get("ref"), message.get("ref"))
            self.assertEqual(party.closed and party.closed[0], 1008)

    def test_sound_first(self) -> None:
        party = self.house.party(None)
        party.sound(b"\0\0")
        self.assertError(party.heard(), "unauthenticated")
        self.assertEqual(party.closed and party.closed[0], 1008)

    def test_nothing_is_heard_after_the_close(self) -> None:
        party = self.house.party(None)
        party.ask(type="list")
        party.say(type="hello", party="anna")
        self.assertEqual(party.sent, [])

    def test_bad_party(self) -> None:
        party = self.house.party(None)
        self.assertError(party.ask(type="hello", party=""), "unauthenticated")

    def test_twice(self) -> None:
        self.assertError(self.anna.ask(type="hello", party="eva", ref="r"), "bad-message")
        self.assertIsNone(self.anna.closed)


class SubmitTests(Case):
    """submit, its frames and its end: one exchange, one answer."""

    def test_accepted(self) -> None:
        self.anna.say(type="submit", id="m1", receiver="bjorn", ttl=60, ref="s")
        self.anna.sound(SECOND[:7])
        self.anna.sound(SECOND[7:])
        digest = hashlib.sha256(SECOND).hexdigest().upper()
        answer = self.anna.ask(type="end", id="m1", sha256=digest, ref="e")
        self.assertEqual(
            answer,
            {
                "type": "accepted",
                "id": "m1",
                "owner": "anna",
                "receiver": "bjorn",
                "state": "queued",
                "seconds": 1.0,
                "expires": self.clock_at(60),
                "ref": "e",
            },
        )
        (piece,) = self.house.pool.work[0].pieces
        audio, window = piece.audio, piece.window
        self.assertEqual((audio.rate, audio.channels, piece.language), (16000, 1, "sv"))
        self.assertEqual(Path(audio.path).read_bytes(), SECOND)
        self.assertEqual((window.start, window.stop), (0, 16000))

    def clock_at(self, seconds: float) -> str:
        then = datetime.fromtimestamp(self.house.clock.seconds() + seconds, UTC)
        return then.strftime("%Y-%m-%dT%H:%M:%S.000Z")

    def test_the_refs(self) -> None:
        self.anna.say(type="submit", id="m1", ref="s")
        self.anna.sound(SECOND)
        self.assertEqual(self.anna.ask(type="end", id="m1")["ref"], "s")
        self.assertError(answer := self.anna.submit("m2", b"", ref="s2"), "bad-audio")
        self.assertEqual((answer["ref"], answer["id"], answer["owner"]), ("s2", "m2", "anna"))

    def test_rate_channels_and_language(self) -> None:
        answer = self.anna.submit("m1", bytes(6 * 44100), rate=44100, channels=2, language="en")
        self.assertEqual(answer["seconds"], 1.5)
        (piece,) = self.house.pool.work[0].pieces
        self.assertEqual((piece.audio.rate, piece.audio.channels), (44100, 2))
        self.assertEqual(piece.language, "en")

    def test_without_receiver_there_is_one_side(self) -> None:
        for id, receiver in (("m1", None), ("m2", "anna")):
            self.assertEqual(self.anna.submit(id, receiver=receiver)["receiver"], "anna")
            self.house.pool.answer("hej")
            self.anna.ask(type="fetch", id=id)
            answer = self.anna.ask(type="ack", id=id)
            self.assertEqual(answer["given"], {"owner": True, "receiver": True})
            self.assertTrue(answer["purged"])

    def test_again_is_accepted_with_the_present_state(self) -> None:
        self.anna.submit("m1", receiver="bjorn")
        self.assertEqual(self.anna.submit("m1", receiver="bjorn")["state"], "transcribing")
        self.house.pool.answer("hej")
        self.assertEqual(self.anna.submit("m1", receiver="bjorn")["state"], "ready")
        for party in (self.anna, self.bjorn):
            party.ask(type="fetch", id="m1", owner="anna")
            party.ask(type="ack", id="m1", owner="anna")
        self.assertEqual(self.anna.submit("m1", receiver="bjorn")["state"], "purged")
        self.assertEqual(self.house.pool.work, [])
        self.assertEqual(self.house.spool.names(), [])

    def test_the_same_id_with_anything_else(self) -> None:
        self.anna.submit("m1", receiver="bjorn")
        for data, more in (
            (SECOND + b"\0\0", {"receiver": "bjorn"}),
            (SECOND, {"receiver": "eva"}),
            (SECOND, {}),
            (SECOND, {"receiver": "bjorn", "rate": 8000}),
            (SECOND, {"receiver": "bjorn", "channels": 2}),
        ):
            self.assertError(self.anna.submit("m1", data, **more), "id-taken")
        self.assertEqual(self.house.spool.names(), [".audio", ".windows"])

    def test_ids_of_different_owners_never_collide(self) -> None:
        self.anna.submit("m1", receiver="eva")
        self.assertEqual(self.bjorn.submit("m1", SECOND * 2, receiver="eva")["type"], "accepted")

    def test_bad_audio_leaves_nothing(self) -> None:
        self.assertError(self.anna.submit("m1", b""), "bad-audio")
        self.assertError(self.anna.submit("m1", b"\0\0\0"), "bad-audio")
        self.assertError(self.anna.submit("m1", b"\0\0", channels=2), "bad-audio")
        self.anna.say(type="submit", id="m1")
        self.anna.sound(SECOND)
        self.assertError(self.anna.ask(type="end", id="m1", sha256="00" * 32), "bad-audio")
        self.assertEqual(self.house.spool.names(), [])
        self.assertError(self.anna.ask(type="status", id="m1"), "unknown-id")
        self.assertEqual(self.anna.submit("m1")["type"], "accepted")

    def test_too_long_is_answered_as_soon_as_it_is_known(self) -> None:
        self.anna.say(type="submit", id="m1", ref="s", rate=8000)
        self.anna.sound(bytes(100 * 8000 * 2))
        self.assertEqual(self.anna.sent, [])
        self.anna.sound(b"\0")
        self.assertError(answer := self.anna.heard(), "too-long")
        self.assertEqual(answer["ref"], "s")
        self.assertEqual(self.house.spool.names(), [])
        self.anna.sound(b"\0" * 100)
        self.anna.say(type="end", id="m1")
        self.assertEqual(self.anna.sent, [], "the rest is swallowed")
        self.assertError(self.anna.ask(type="end", id="m1"), "bad-message")

    def test_another_request_ends_the_swallowing(self) -> None:
        def refuse() -> None:
            self.anna.say(type="submit", id="m1", language="tlh")
            self.assertError(self.anna.heard(), "unsupported")

        refuse()
        self.assertEqual(self.anna.ask(type="list")["type"], "listing")
        self.assertError(self.anna.ask(type="end", id="m1"), "bad-message")
        refuse()
        self.assertEqual(self.anna.submit("m2")["type"], "accepted")
        refuse()
        self.assertError(self.anna.ask(type="end", id="other"), "bad-message")

    def test_busy_when_the_queue_is_full(self) -> None:
        self.house.max_queue = 2
        self.house.open()
        anna, bjorn = self.house.party("anna"), self.house.party("bjorn")
        anna.submit("m1")
        bjorn.say(type="submit", id="b1")
        answer = anna.ask(type="submit", id="m2", ref="s")
        self.assertError(answer, "busy")
        self.assertGreater(answer["retry_after"], 0)
        bjorn.session.lost()
        self.assertEqual(self.house.party("eva").submit("m3")["type"], "accepted")
        self.house.pool.answer("hej")
        self.house.pool.answer("hej")
        self.assertEqual(anna.submit("m4")["type"], "accepted")

    def test_unsupported(self) -> None:
        self.assertError(self.anna.ask(type="submit", id="m1", language="xx"), "unsupported")

    def test_a_model_of_one_language(self) -> None:
        house = House(Path(self.mktemp()), pool=FakePool(model=None))
        anna = house.party("anna")
        self.assertEqual(anna.submit("m1", language="fi")["type"], "accepted", "not known yet")
        house.pool.model = msgspec.structs.replace(MODEL, languages=None)
        self.assertError(anna.ask(type="submit", id="m2", language="en"), "unsupported")
        self.assertEqual(anna.submit("m3", language="sv")["type"], "accepted")

    def test_a_second_submit_ends_both(self) -> None:
        self.anna.say(type="submit", id="m1", ref="1")
        self.anna.sound(SECOND)
        answer = self.anna.ask(type="submit", id="m2", ref="2")
        self.assertError(answer, "bad-message")
        self.assertEqual((answer["ref"], answer["id"]), ("2", "m2"))
        self.anna.sound(SECOND)
        self.anna.say(type="end", id="m1")
        self.anna.say(type="end", id="m2")
        self.assertEqual(self.anna.sent, [])
        for id in ("m1", "m2"):
            self.assertError(self.anna.ask(type="status", id=id), "unknown-id")
        self.assertEqual(self.house.spool.names(), [])

    def test_a_bad_submit_is_swallowed_too(self) -> None:
        for wrong in (
            {"rate": 4000},
            {"channels": 9},
            {"ttl": 0},
            {"receiver": 5},
            {"language": ""},
            {"id": "no spaces"},
            {"id": 5},
        ):
            message = {"type": "submit", "id": "m1", "ref": "s", **wrong}
            self.anna.say(**message)
            self.assertError(answer := self.anna.heard(), "bad-message")
            self.assertEqual(answer["ref"], "s")
            for _ in range(20):
                self.anna.sound(SECOND)
            self.anna.say(type="end", id=message["id"])
            self.assertEqual(self.anna.sent, [], wrong)
            self.assertError(self.anna.ask(type="end", id="m1"), "bad-message")
            self.assertEqual(self.anna.submit("m1")["type"], "accepted")
        self.assertIsNone(self.anna.closed)

    def test_a_bad_second_submit_ends_both(self) -> None:
        self.anna.say(type="submit", id="m1")
        self.anna.sound(SECOND)
        self.assertError(self.anna.ask(type="submit", id="m2", rate=1), "bad-message")
        self.anna.sound(SECOND)
        self.anna.say(type="end", id="m1")
        self.anna.say(type="end", id="m2")
        self.assertEqual(self.anna.sent, [])
        self.assertEqual(self.house.spool.names(), [])
        self.assertEqual(self.anna.submit("m3")["type"], "accepted")

    def test_a_bad_submit_after_a_refused_one(self) -> None:
        self.anna.ask(type="submit", id="m1", language="xx")
        self.assertError(self.anna.ask(type="submit", id="m2", rate=1), "bad-message")
        self.anna.sound(SECOND)
        self.anna.say(type="end", id="m2")
        self.assertEqual(self.anna.sent, [])
        self.assertError(self.anna.ask(type="end", id="m1"), "bad-message")

    def test_a_bad_end_ends_the_upload(self) -> None:
        self.anna.say(type="submit", id="m1")
        self.anna.sound(SECOND)
        answer = self.anna.ask(type="end", id="m1", sha256=5, ref="e")
        self.assertError(answer, "bad-message")
        self.assertEqual((answer["ref"], answer["id"]), ("e", "m1"))
        self.assertEqual(self.house.spool.names(), [])
        self.assertEqual(self.anna.submit("m1")["type"], "accepted")

    def test_a_bad_end_of_a_refused_upload(self) -> None:
        self.anna.ask(type="submit", id="m1", language="xx")
        self.anna.say(type="end", id="m1", sha256=5)
        self.assertEqual(self.anna.sent, [])

    def test_end_with_another_id(self) -> None:
        self.anna.say(type="submit", id="m1")
        self.anna.sound(SECOND)
        self.assertError(self.anna.ask(type="end", id="m2"), "bad-message")
        self.assertEqual(self.anna.ask(type="end", id="m1")["type"], "accepted")

    def test_a_lost_connection_leaves_nothing(self) -> None:
        self.anna.say(type="submit", id="m1")
        self.anna.sound(SECOND)
        self.assertEqual(self.house.spool.names(), [".audio", ".windows"])
        self.anna.session.lost()
        self.assertEqual(self.house.spool.names(), [])
        self.assertEqual(self.house.party("anna").ask(type="list")["transcripts"], [])

    def test_other_requests_during_an_upload(self) -> None:
        self.anna.say(type="submit", id="m1", receiver="bjorn")
        self.anna.sound(SECOND)
        for party in (self.anna, self.bjorn):
            status = party.ask(type="status", id="m1", owner="anna")
            self.assertEqual((status["state"], status["seconds"]), ("uploading", 1.0))
            self.assertError(party.ask(type="ack", id="m1", owner="anna"), "not-fetched")
            (listed,) = party.ask(type="list")["transcripts"]
            self.assertEqual(listed["state"], "uploading")
        self.assertError(self.eva.ask(type="status", id="m1", owner="anna"), "unknown-id")
        self.assertEqual(self.anna.ask(type="end", id="m1")["type"], "accepted")

    def test_a_broken_disk(self) -> None:
        self.house.spool.broken = OSError(errno.EIO, "input/output error")
        self.anna.say(type="submit", id="m1", ref="s")
        self.anna.sound(SECOND)
        self.assertError(self.anna.ask(type="end", id="m1"), "internal")
        self.assertEqual(self.anna.closed and self.anna.closed[0], 1011)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)


class BadMessageTests(Case):
    """What is no request."""

    def test_the_kinds(self) -> None:
        for text in (b"", b"nonsense", b"[]", b"null", b'{"type":"nonsense"}', b'{"id":"m"}'):
            self.anna.session.text(text)
            self.assertError(self.anna.heard(), "bad-message")
            self.anna.ask(type="list")
        self.assertError(self.anna.ask(type="fetch", id="no spaces", ref="r"), "bad-message")
        self.assertError(answer := self.anna.ask(type="fetch", ref="r"), "bad-message")
        self.assertEqual(answer["ref"], "r")
        self.assertError(self.anna.ask(type="end", id="m1", ref="e"), "bad-message")
        self.anna.sound(b"\0\0")
        self.assertError(self.anna.heard(), "bad-message")
        self.assertIsNone(self.anna.closed)

    def test_one_answer_for_a_frame_in_pieces(self) -> None:
        self.anna.session.audio(b"\0\0", True)
        self.anna.session.audio(b"\0\0", False)
        self.assertEqual(len(self.anna.sent), 1)

    def test_ten_in_a_row(self) -> None:
        for _ in range(9):
            self.assertError(self.anna.ask(type="?"), "bad-message")
        self.anna.ask(type="list")
        for _ in range(9):
            self.assertError(self.anna.ask(type="?"), "bad-message")
        self.assertIsNone(self.anna.closed)
        self.assertError(self.anna.ask(type="?"), "bad-message")
        self.assertEqual(self.anna.closed and self.anna.closed[0], 1008)
        self.anna.say(type="list")
        self.assertEqual(self.anna.sent, [])

    def test_internal(self) -> None:
        self.house.store.pool.broken = RuntimeError("secret detail")
        answer = self.anna.ask(type="status", id="m1", ref="r")
        self.assertError(answer, "internal")
        self.assertEqual(answer["ref"], "r")
        self.assertNotIn("secret", str(answer))
        self.assertEqual(self.anna.closed and self.anna.closed[0], 1011)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class OrderTests(Case):
    """Answers come in the order of the requests, and little is held meanwhile."""

    def test_requests_wait_for_those_before_them(self) -> None:
        gate: Deferred[Any] = Deferred()
        run = self.house.store.pool.runInteraction
        self.house.store.pool.runInteraction = (  # type: ignore[method-assign]
            lambda work: gate.addCallback(lambda _: run(work))
        )
        self.anna.say(type="status", id="m1", ref="1")
        self.house.store.pool.runInteraction = run  # type: ignore[method-assign]
        self.anna.say(type="list", ref="2")
        self.anna.say(type="submit", id="m2", ref="3")
        self.anna.sound(SECOND)
        self.assertEqual(self.anna.sent, [])
        self.assertTrue(self.anna.paused)
        gate.callback(None)
        self.assertFalse(self.anna.paused)
        self.anna.say(type="end", id="m2", ref="4")
        self.assertEqual([a["ref"] for a in self.anna.sent], ["1", "2", "4"])

    def test_many_at_once(self) -> None:
        for i in range(5000):
            self.anna.say(type="subscribe", ref=str(i))
        self.assertEqual([a["ref"] for a in self.anna.sent], [str(i) for i in range(5000)])
