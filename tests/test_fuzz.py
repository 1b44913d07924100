"""Random and mutated messages, frames and handshakes: a few hundred of each, always the same.

``make torture`` sends a hundred thousand, see torture/fuzz.py.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz import play
from tests.fuzzframes import VISITS, Visit, entertain
from tests.fuzzline import Broken
from tests.fuzzmessages import (
    MUTATIONS,
    REQUESTS,
    RUBBISH,
    Collect,
    Recording,
    Step,
    Text,
    Work,
    episodes,
)
from tests.memoryclient import BINARY, CLOSE, CONTINUATION, PING, TEXT, close_frame, frame
from tests.verdict import verdict
from transcribed import requests, transcript, upload, wire
from transcribed.scheduler import Scheduler
from transcribed.storage._base import SQLStore


def drawn(examples: int) -> settings:
    """So many examples, the same at each run."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class Case(SynchronousTestCase):
    """Nothing may be logged as an error."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())

    def tearDown(self) -> None:
        self.assertEqual(self.flushLoggedErrors(), [])


class WireTests(Case):
    """A frame is a request, or is not one, and that is all that parsing can say."""

    @drawn(500)
    @given(st.one_of(MUTATIONS, MUTATIONS, RUBBISH))
    def test_anything(self, payload: bytes) -> None:
        try:
            request = wire.parse(payload)
        except wire.Unparsable as e:
            self.assertEqual(e.error.code, "bad-message")
            self.assertLess(len(e.error.reason), 200)
            for text in (e.ref, e.id):
                self.assertLessEqual(len(text or ""), 128)
            answer = wire.Error(code="bad-message", reason=e.error.reason, id=e.id)
            wire.render(wire.with_ref(answer, e.ref))
        else:
            self.assertEqual(wire.parse(msgspec.json.encode(request)), request)

    @drawn(200)
    @given(REQUESTS)
    def test_requests(self, request: dict[str, Any]) -> None:
        parsed = wire.parse(msgspec.json.encode(request))
        for name, value in request.items():
            if name != "type":
                self.assertEqual(getattr(parsed, name), value)


class SessionTests(Case):
    """Several parties at once, each sending whatever they like."""

    @drawn(20)
    @given(episodes(20))
    def test_parties(self, steps: list[Step]) -> None:
        crowd = play(self.directory, steps)
        self.assertGreaterEqual(crowd.messages, 3)

    def test_nobody_stays_in_memory(self) -> None:
        crowd = play(self.directory, GOOD)
        self.assertEqual((crowd.accepted, crowd.delivered), (1, 2))
        gone = crowd.gone()
        del crowd
        gc.collect()
        self.assertEqual(gone(), 0)


GOOD: list[Step] = [
    Recording(0, "m1", "bjorn", 16_000),
    Work(0, 1),
    Collect(0, "m1", "anna"),
    Collect(1, "m1", "anna"),
]
STRANGER: list[Step] = [*GOOD[:2], Text(2, b'{"type":"status","id":"m1","owner":"anna"}', True)]


class PlantedTests(Case):
    """The driver sees what is wrong."""

    def assertSeen(self, steps: list[Step]) -> None:
        self.assertRaises(Broken, play, self.directory, steps)

    def test_an_answer_without_its_ref(self) -> None:
        self.patch(wire, "with_ref", lambda answer, ref: answer)
        self.assertSeen(GOOD)

    def test_a_stranger_who_sees(self) -> None:
        one = SQLStore._one
        seen = classmethod(lambda cls, db, owner, id, party: one(db, "owner = ?", owner))
        self.patch(SQLStore, "_seen", seen)
        self.patch(transcript.Transcript, "seen_by", lambda self, party, now: self)
        self.assertSeen(STRANGER)

    def test_a_watcher_who_stays(self) -> None:
        self.patch(requests.Core, "unwatch", property(lambda core: None, lambda core, stop: None))
        self.assertSeen([Text(0, b'{"type":"subscribe"}', True)])

    def test_an_upload_that_stays(self) -> None:
        self.patch(upload.Upload, "discard", lambda self: None)
        self.assertSeen([Text(0, b'{"type":"submit","id":"m1"}', True)])

    def test_a_job_that_stays(self) -> None:
        self.patch(Scheduler, "remove", lambda self, key: None)
        self.assertSeen(GOOD)

    def test_an_answer_too_many(self) -> None:
        send = requests.Core.send

        def twice(core: requests.Core, answer: wire.Answer, ref: str | None = None) -> None:
            send(core, answer, ref)
            send(core, answer, ref)

        self.patch(requests.Core, "send", twice)
        self.assertSeen([Text(0, b'{"type":"list"}', True)])


class PortTests(Case):
    """Clients that keep to no rules, of HTTP or of websockets."""

    @drawn(60)
    @given(st.lists(VISITS, min_size=1, max_size=8))
    def test_visits(self, visits: list[Visit]) -> None:
        entertain(self.directory, visits)

    def test_nobody_stays_in_memory(self) -> None:
        whole = frame(TEXT, b'{"type":"subscribe"}')
        visits = [
            Visit(None, data, None, reads)
            for data in (whole, whole[:5], frame(3), close_frame(1000), frame(TEXT, b"\xff"), b"")
            for reads in (True, False)
        ]
        rude = [b"", b"GET", b"GET /ws HTTP/1.1\r\n\r\n", b"\r\n" * 50, b"GET /" + b"x" * 70_000]
        visits += [Visit(handshake, b"", None, True) for handshake in rude]
        gone = entertain(self.directory, visits).gone()
        gc.collect()
        self.assertEqual(gone(), 0)

    def test_the_verdict(self) -> None:
        text, submit = frame(TEXT, b"{}"), frame(BINARY, b"\0\0", fin=False)
        for data, code in (
            (b"", None),
            (text[:1], None),
            (text * 5, None),
            (text + frame(PING, b"x" * 125), None),
            (frame(PING, b"x" * 126), 1002),
            (submit + frame(PING) + frame(CONTINUATION, b"\xff"), None),
            (submit + text, 1002),
            (frame(CONTINUATION), 1002),
            (frame(TEXT, b"\xce", fin=False), None),
            (frame(TEXT, b"\xce"), 1007),
            (frame(TEXT, b"\xce", fin=False) + frame(CONTINUATION, b"\xba"), None),
            (frame(TEXT, b"\xed\xa0", length=9), 1007),
            (frame(TEXT, b"", length=65536), None),
            (frame(TEXT, b"", length=65537), 1009),
            (frame(BINARY, b"", length=2**62), None),
            (frame(BINARY, b"", length=2**63), 1002),
            (frame(CLOSE) + text, 1000),
            (close_frame(999), 1002),
            (close_frame(1000, b"\xff"), 1007),
        ):
            self.assertEqual(verdict(data)[0], code, data[:20])
