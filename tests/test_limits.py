"""Each limit of recordings at its edge: at it all works, one more is refused; others go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import FakePool, House, Party
from transcribed.scheduler import RETRY_FULL_QUEUE
from transcribed.spool import Undeleted
from transcribed.upload import RETRY_IDLE

SECOND = b"\1\0" * 16000


class Case(SynchronousTestCase):
    """A house with limits of the test's; Anna, who meets them, and Bjorn, who does not."""

    max_queue = 100
    others_name = "anna"
    terms: dict[str, Any] = {}

    def setUp(self) -> None:
        self.house = House(Path(self.mktemp()), self.max_queue, FakePool(10))
        self.house.terms = replace(self.house.terms, **self.terms)
        self.house.open()
        self.anna = self.house.party("anna")
        self.other = self.house.party(self.others_name)
        self.bjorn = self.house.party("bjorn")
        self.here = [self.anna, self.other, self.bjorn]

    def tearDown(self) -> None:
        self.leave(*list(self.here))
        self.assertEqual(self.house.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(self.house.desk.open_uploads, 0)
        self.assertEqual(self.house.desk._uploads._uploads, {})
        self.assertEqual(len(self.house.doorkeeper.parties), 0)
        jobs = self.house.scheduler._jobs.values()
        self.assertAlmostEqual(
            self.house.scheduler.seconds, sum(j.transcript.seconds for j in jobs)
        )

    def leave(self, *parties: Party) -> None:
        """Their connections break."""
        for party in parties:
            self.here.remove(party)
            party.session.lost()

    def begin(self, party: Party, id: str, seconds: float = 0, **more: object) -> None:
        """Start an upload; nothing is said to it yet."""
        party.say(type="submit", id=id, **more)
        if seconds:
            party.sound(b"\1\0" * int(16000 * seconds))
        self.assertEqual(party.sent, [])

    def end(self, party: Party, id: str) -> None:
        self.assertEqual(party.ask(type="end", id=id)["type"], "accepted")

    def assertSwallows(self, party: Party, code: str, id: str, reason: str = "") -> dict[str, Any]:
        """It was refused with this code, and the rest of its upload is swallowed."""
        (answer,) = party.sent
        party.sent.clear()
        self.assertEqual((answer["code"], answer["id"]), (code, id))
        self.assertIn(reason, answer["reason"])
        party.sound(SECOND)
        party.say(type="end", id=id)
        self.assertEqual((party.sent, party.closed), ([], None))
        self.assertEqual(party.ask(type="status", id=id)["code"], "unknown-id")
        return answer

    def finish(self, at: int = 0) -> None:
        self.house.pool.answer("hej", at=at)


class IdleTests(Case):
    """How long an upload may bring nothing. There is one place in the queue."""

    max_queue = 1
    terms = {"idle_seconds": 60.0}

    def pass_time(self, seconds: float) -> None:
        self.house.clock.advance(seconds)
        self.house.purge()

    def test_theEdge(self) -> None:
        self.begin(self.anna, "m1", 1)
        self.pass_time(60)
        self.assertEqual(self.anna.sent, [])
        self.assertEqual(self.house.spool.names(), [".audio", ".windows"])
        self.pass_time(0.5)
        answer = self.assertSwallows(self.anna, "busy", "m1", "no audio came for 60 s")
        self.assertEqual(answer["retry_after"], RETRY_IDLE)
        self.assertEqual(self.house.spool.names(), [])
        # The place is free again.
        self.assertEqual(self.bjorn.submit("m1")["type"], "accepted")

    def test_whatCannotBeDeletedIsToldAllTheSame(self) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(5, "input/output error")

        self.begin(self.anna, "m1", 1)
        broken = self.patch(Path, "unlink", refuse)
        self.house.clock.advance(60.5)
        housekeeping = Deferred.fromCoroutine(self.house.desk.keep_house())
        self.failureResultOf(housekeeping, Undeleted)
        broken.restore()
        self.assertSwallows(self.anna, "busy", "m1", "no audio came")
        self.pass_time(1)
        self.assertEqual(self.house.spool.names(), [])

    def test_anythingIsEnough(self) -> None:
        self.begin(self.anna, "m1")
        for _ in range(5):
            self.pass_time(60)
            self.anna.sound(b"\1\0")
        self.end(self.anna, "m1")
        self.pass_time(100)
        self.assertEqual(self.anna.sent, [])

    def test_oneThatNeverBroughtAnything(self) -> None:
        self.begin(self.anna, "m1")
        self.pass_time(60.5)
        self.assertSwallows(self.anna, "busy", "m1")

    def test_questionsAreNoAudio(self) -> None:
        self.begin(self.anna, "m1", 1)
        self.pass_time(59)
        self.assertEqual(self.anna.ask(type="list")["transcripts"][0]["state"], "uploading")
        self.pass_time(1.5)
        self.assertSwallows(self.anna, "busy", "m1")

    def test_notWhileItIsKept(self) -> None:
        """The disk may take its time."""
        kept: Deferred[None] = Deferred()
        self.begin(self.anna, "m1", 1)
        self.patch(self.house.spool, "inThread", lambda work: kept.addCallback(lambda _: work()))
        self.anna.say(type="end", id="m1")
        self.pass_time(1000)
        self.assertEqual(self.anna.sent, [])
        kept.callback(None)
        self.assertEqual(self.anna.heard()["type"], "accepted")


class LengthTests(Case):
    """Bytes and seconds of a recording."""

    terms = {"max_seconds": 2.0, "max_bytes": 70_000}

    def test_bytes(self) -> None:
        self.begin(self.anna, "m1", channels=5)
        self.anna.sound(b"\1" * 70_000)
        self.end(self.anna, "m1")
        for pieces in ((70_001,), (70_000, 1), (1,) * 3 + (69_998,)):
            self.begin(self.anna, "m2", channels=5)
            for size in pieces:
                self.anna.sound(b"\1" * size)
            self.assertSwallows(self.anna, "too-long", "m2", "more audio than 70000 bytes")
        self.assertEqual(len(list(self.house.directory.glob("*.audio"))), 1)

    def test_seconds(self) -> None:
        for rate, channels in ((8000, 1), (8000, 2), (11025, 1)):
            size = rate * 2 * 2 * channels
            id = f"{rate}-{channels}"
            self.begin(self.anna, id, rate=rate, channels=channels)
            self.anna.sound(b"\1" * size)
            self.end(self.anna, id)
            self.begin(self.anna, "m2", rate=rate, channels=channels)
            self.anna.sound(b"\1" * size)
            self.assertEqual(self.anna.sent, [])
            self.anna.sound(b"\1")
            self.assertSwallows(self.anna, "too-long", "m2", "2 seconds")
        self.assertEqual(self.bjorn.submit("m1")["type"], "accepted")

    def test_theyAreSaidInWelcome(self) -> None:
        self.assertEqual(self.house.greeting("eva").limits.bytes, 70_000)
        self.assertEqual(self.house.greeting("eva").limits.seconds, 2.0)


class UploadsTests(Case):
    """Recordings that come in at once."""

    others_name = "eva"
    terms = {"max_uploads": 2}

    def refused(self) -> None:
        self.bjorn.say(type="submit", id="m1")
        answer = self.assertSwallows(self.bjorn, "busy", "m1", "too many recordings are coming in")
        self.assertEqual(answer["retry_after"], RETRY_FULL_QUEUE)
        self.assertEqual(self.house.desk.refusing(), "too many recordings are coming in")

    def test_theEdge(self) -> None:
        self.begin(self.anna, "m1", 1)
        self.assertEqual(self.house.desk.refusing(), None)
        self.begin(self.other, "m2", 1)
        self.refused()
        self.end(self.anna, "m1")
        self.begin(self.anna, "m3", 1)
        self.refused()
        self.leave(self.other)
        self.assertEqual(self.bjorn.submit("m1")["type"], "accepted")
        self.end(self.anna, "m3")

    def test_aPartyGetsHalf(self) -> None:
        line = self.house.party("anna")
        self.here.append(line)
        self.begin(self.anna, "m1", 1)
        for id in ("m1", "m2"):
            line.say(type="submit", id=id)
            (answer,) = line.sent
            line.sent.clear()
            self.assertEqual(
                (answer["code"], answer["reason"], answer["retry_after"]),
                ("busy", "you have too many recordings coming in", RETRY_FULL_QUEUE),
            )
        self.assertEqual(self.house.desk.refusing(), None)
        self.begin(self.bjorn, "m1", 1)
        self.end(self.anna, "m1")
        self.begin(line, "m2", 1)
        self.end(line, "m2")
        self.end(self.bjorn, "m1")

    def test_everyEndFreesAPlace(self) -> None:
        self.begin(self.other, "m2", 1)
        self.begin(self.anna, "m1", 1)
        self.anna.ask(type="cancel", id="m1")
        self.begin(self.anna, "m1", 1)
        self.anna.ask(type="end", id="m1", sha256="0" * 64)
        self.begin(self.anna, "m1")
        self.anna.sound(b"\1" * 19_200_001)
        self.assertSwallows(self.anna, "too-long", "m1")
        self.begin(self.anna, "m1", 1)
        self.anna.say(type="submit", id="m3")
        self.assertEqual(self.anna.heard()["code"], "bad-message")
        self.assertEqual(self.anna.ask(type="list")["type"], "listing")
        self.begin(self.anna, "m1", 1)
        self.refused()
        self.end(self.other, "m2")


class QueueTests(Case):
    """Recordings that wait or are in work, and their seconds."""

    max_queue = 2

    def limit(self, seconds: float = 1e9, of_owner: float = 1e9) -> None:
        self.house.scheduler.limit_seconds = seconds
        self.house.scheduler.limit_seconds_of_owner = of_owner

    def assertRefused(self, party: Party, reason: str, id: str = "refused") -> None:
        answer = self.assertSwallows(party, "busy", id, reason)
        self.assertEqual(answer["retry_after"], RETRY_FULL_QUEUE)

    def test_recordings(self) -> None:
        eva = self.house.party("eva")
        self.here.append(eva)
        self.anna.submit("m1")
        self.begin(eva, "m2", 1)
        self.bjorn.say(type="submit", id="refused")
        self.assertRefused(self.bjorn, "the queue is full")
        self.end(eva, "m2")
        self.finish()
        self.assertEqual(self.bjorn.submit("m1")["type"], "accepted")

    def test_recordingsOfAnOwner(self) -> None:
        self.anna.submit("m1")
        for _ in range(2):
            self.other.say(type="submit", id="refused")
            self.assertRefused(self.other, "your share of the queue is full")
        self.assertEqual(self.house.desk.refusing(), None, "others are served")
        self.assertEqual(self.bjorn.submit("m1")["type"], "accepted")
        self.finish()
        self.assertEqual(self.other.submit("m2")["type"], "accepted")

    def test_secondsInAll(self) -> None:
        self.limit(seconds=5.0)
        self.anna.submit("m1", SECOND * 3)
        self.begin(self.bjorn, "m1", 2)
        self.bjorn.sound(b"\1")
        self.assertEqual(self.bjorn.sent, [], "not yet a frame more")
        self.bjorn.sound(b"\0")
        self.assertRefused(self.bjorn, "the queue is full", "m1")
        self.assertEqual(self.house.scheduler.seconds, 3.0)
        self.begin(self.bjorn, "m2", 2)
        self.assertEqual(self.house.desk.refusing(), "the queue is full")
        self.end(self.bjorn, "m2")
        self.finish()
        self.assertEqual(self.house.scheduler.seconds, 2.0)
        self.assertEqual(self.anna.submit("m2", SECOND * 3)["type"], "accepted")

    def test_fullOfSeconds(self) -> None:
        self.limit(seconds=5.0)
        self.anna.submit("m1", SECOND * 5)
        self.bjorn.say(type="submit", id="refused")
        self.assertRefused(self.bjorn, "the queue is full")

    def test_secondsOfAnOwner(self) -> None:
        self.limit(of_owner=5.0)
        self.house.scheduler.limit = 4
        self.anna.submit("m1", SECOND * 3)
        self.begin(self.anna, "m2", 2)
        self.assertEqual(self.bjorn.submit("m1", SECOND * 5)["type"], "accepted")
        self.assertEqual(len(self.house.scheduler), 2)
        self.anna.sound(b"\1\0")
        self.assertRefused(self.anna, "your share of the queue is full", "m2")
        self.finish(at=1)
        self.begin(self.anna, "m2", 2)
        self.end(self.anna, "m2")
        self.finish(at=1)

    def test_anOwnersShareIsFull(self) -> None:
        self.limit(of_owner=3.0)
        self.house.scheduler.limit = 4
        self.anna.submit("m1", SECOND * 3)
        self.other.say(type="submit", id="refused")
        self.assertRefused(self.other, "your share of the queue is full")
        self.assertEqual(self.house.desk.refusing(), None, "others are served")
        self.assertEqual(self.bjorn.submit("m1")["type"], "accepted")

    def test_whatIsThereIsKept(self) -> None:
        """An upload that has come so far counts, and its end is never refused."""
        self.limit(seconds=2.0, of_owner=2.0)
        self.house.scheduler.limit = 4
        self.begin(self.anna, "m1", 1)
        self.begin(self.other, "m2", 1)
        self.end(self.anna, "m1")
        self.end(self.other, "m2")
        self.assertEqual(self.house.scheduler.seconds, 2.0)

    def test_aRestartTakesAllUp(self) -> None:
        """However small the limits are now."""
        self.anna.submit("m1", SECOND * 3)
        self.bjorn.submit("m2", SECOND * 3)
        self.leave(*list(self.here))
        self.house.pool.work.clear()
        self.house.max_queue = 1
        self.house.open()
        self.limit(seconds=1.0, of_owner=1.0)
        self.assertEqual((len(self.house.scheduler), self.house.scheduler.seconds), (2, 6.0))
        anna, eva = self.house.party("anna"), self.house.party("eva")
        self.here += [anna, eva]
        for _ in range(2):
            eva.say(type="submit", id="refused")
            self.assertRefused(eva, "the queue is full")
            self.finish()
        self.assertEqual(anna.ask(type="fetch", id="m1")["text"], "hej")
        self.assertEqual(eva.submit("m1")["type"], "accepted")

    def test_othersNoticeNothing(self) -> None:
        self.limit(seconds=2.0)
        self.bjorn.submit("m1", receiver="anna")
        self.begin(self.anna, "m2", 1)
        self.anna.sound(SECOND)
        self.assertRefused(self.anna, "the queue is full", "m2")
        self.finish()
        for party in (self.anna, self.bjorn):
            self.assertEqual(party.ask(type="fetch", id="m1", owner="bjorn")["text"], "hej")
