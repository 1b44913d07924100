"""How much of the disk recordings may take: the quota, what stays free, and what frees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import House, ImmediateSpool, Party
from transcribed import disk
from transcribed.disk import LOOK_EVERY, RETRY_FULL_DISK, Disk
from transcribed.errors import Busy

SECOND = b"\1\0" * 16000


class Filling(Disk):
    """A disk whose free bytes the test says."""

    there = 2**40

    @property
    def free(self) -> int:
        """As the test says."""
        return self.there


class DiskTests(SynchronousTestCase):
    """The counting alone."""

    def setUp(self) -> None:
        self.disk = Filling(1000, 500)
        self.disk.open(Path("/"), [])

    def refused(self, size: int) -> str:
        error: Busy = self.assertRaises(Busy, self.disk.claim, size)
        self.assertEqual(error.retry_after, RETRY_FULL_DISK)
        return error.reason

    def test_theQuotasEdge(self) -> None:
        self.disk.wrote(Path("/a"), 900)
        self.disk.claim(100)
        self.assertEqual(self.refused(101), "the disk quota is used up")
        self.assertEqual(self.disk.refusing(), None)
        self.disk.wrote(Path("/b"), 100)
        self.assertEqual(self.refused(1), "the disk quota is used up")
        self.assertEqual(self.disk.refusing(), "the disk quota is used up")
        self.disk.deleted(Path("/b"))
        self.disk.deleted(Path("/b"))
        self.disk.deleted(Path("/never was"))
        self.assertEqual((self.disk.used, self.disk.refusing()), (900, None))
        self.disk.claim(100)

    def test_theFloorsEdge(self) -> None:
        self.disk.there = 500
        self.disk.claim(0)
        self.assertEqual(self.disk.refusing(), None)
        self.disk.there = 499
        self.assertEqual(self.refused(0), "the disk is full")
        self.assertEqual(self.disk.refusing(), "the disk is full")

    def test_itIsLookedForNowAndThen(self) -> None:
        self.disk.quota = 2**40
        self.disk.there = 0
        self.disk.claim(LOOK_EVERY - 1)
        self.assertEqual(self.refused(1), "the disk is full")
        self.disk.claim(LOOK_EVERY - 1)

    def test_aRealDisk(self) -> None:
        real = Disk()
        real.open(Path("."), [])
        self.assertGreater(real.free, 0)
        self.assertEqual(real.refusing(), None)


class DiskHouse(House):
    """A house with little room.

    :ivar quota: of each disk that is made from now on.
    """

    quota = 2 * len(SECOND)

    def make_spool(self) -> ImmediateSpool:
        """The disk."""
        return ImmediateSpool(self.directory, Filling(self.quota, 500))


class QuotaTests(SynchronousTestCase):
    """A house with room for two seconds of audio."""

    def setUp(self) -> None:
        self.house = DiskHouse(Path(self.mktemp()))
        self.anna = self.house.party("anna")
        self.bjorn = self.house.party("bjorn")

    def tearDown(self) -> None:
        self.assertEqual(self.house.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    @property
    def disk(self) -> Any:
        return self.house.spool.disk

    def there(self) -> int:
        """Bytes of audio and text that are there."""
        files = [p for p in self.house.directory.iterdir() if p.suffix != ".windows"]
        return sum(p.stat().st_size for p in files)

    def assertUsed(self, size: int) -> None:
        self.assertEqual((self.disk.used, self.there()), (size, size))

    def assertBusy(self, answer: dict[str, Any], reason: str = "the disk quota is used up") -> None:
        self.assertEqual((answer.get("code"), answer["reason"]), ("busy", reason))
        self.assertEqual(answer["retry_after"], RETRY_FULL_DISK)

    def refusal(self, party: Party, data: bytes = SECOND) -> dict[str, Any]:
        """What is said to a recording before its end."""
        party.say(type="submit", id="refused")
        party.sound(data)
        (answer,) = party.sent
        party.sent.clear()
        return answer

    def test_exactlyTheQuota(self) -> None:
        self.assertEqual(self.anna.submit("m1")["type"], "accepted")
        self.assertEqual(self.bjorn.submit("m1")["type"], "accepted")
        self.assertUsed(2 * len(SECOND))

    def test_oneByteMore(self) -> None:
        self.anna.submit("m1")
        self.bjorn.say(type="submit", id="m2")
        self.bjorn.sound(SECOND)
        self.assertEqual(self.bjorn.sent, [])
        self.bjorn.sound(b"\1")
        self.assertBusy(self.bjorn.heard())
        self.assertUsed(len(SECOND))
        # The rest is swallowed, and others notice nothing.
        self.bjorn.sound(SECOND)
        self.bjorn.say(type="end", id="m2")
        self.assertEqual(self.bjorn.sent, [])
        self.house.pool.answer("hej")
        self.assertEqual(self.anna.ask(type="fetch", id="m1")["text"], "hej")
        self.assertEqual(self.bjorn.ask(type="list")["type"], "listing")
        self.assertEqual(self.bjorn.submit("m2")["type"], "accepted")

    def test_whatIsAcceptedIsNeverRefused(self) -> None:
        """Its text is written, however full it is."""
        self.anna.submit("m1")
        self.bjorn.submit("m2")
        self.disk.there = 0
        self.disk.quota = 1
        self.house.pool.answer("hej")
        self.assertEqual(self.anna.ask(type="fetch", id="m1")["text"], "hej")
        self.assertUsed(self.there())
        self.assertBusy(self.refusal(self.anna))

    def test_whatFreesIt(self) -> None:
        def lost() -> None:
            party = self.house.party("eva")
            party.say(type="submit", id="m1")
            party.sound(SECOND)
            self.assertUsed(len(SECOND))
            party.session.lost()

        def cancelled_upload() -> None:
            self.anna.say(type="submit", id="m1")
            self.anna.sound(SECOND)
            self.assertEqual(self.anna.ask(type="cancel", id="m1")["type"], "cancelled")

        def cancelled() -> None:
            self.anna.submit("m2")
            self.assertUsed(len(SECOND))
            self.anna.ask(type="cancel", id="m2")
            self.house.pool.answer("hej")

        def wrong_digest() -> None:
            self.anna.say(type="submit", id="m3")
            self.anna.sound(SECOND)
            answer = self.anna.ask(type="end", id="m3", sha256="0" * 64)
            self.assertEqual(answer["code"], "bad-audio")

        def sent_again() -> None:
            self.anna.submit("m4")
            self.anna.submit("m4")
            self.assertUsed(len(SECOND))
            self.anna.ask(type="cancel", id="m4")
            self.house.pool.answer("hej")

        def purged() -> None:
            self.anna.submit("m5")
            self.house.pool.answer("hej")
            self.assertTrue(0 < self.disk.used < 1000, "only the text is there")
            self.assertUsed(self.there())
            self.anna.ask(type="fetch", id="m5")
            self.assertTrue(self.anna.ask(type="ack", id="m5")["purged"])

        def expired() -> None:
            self.anna.submit("m6", ttl=10)
            self.house.pool.answer("hej")
            self.anna.submit("m7", ttl=10)
            self.house.clock.advance(11)
            self.house.purge()
            self.house.pool.answer("hej")

        for way in (lost, cancelled_upload, cancelled, wrong_digest, sent_again, purged, expired):
            way()
            self.assertUsed(0)

    def test_whatCannotBeDeletedIsCounted(self) -> None:
        self.anna.submit("m1")
        self.house.spool.broken = OSError(5, "Input/output error")
        self.anna.ask(type="cancel", id="m1")
        self.assertUsed(len(SECOND))
        self.house.spool.broken = None
        self.house.purge()
        self.assertUsed(0)
        self.flushLoggedErrors(OSError)

    def test_countedAnewAfterARestart(self) -> None:
        self.anna.submit("m1")
        self.house.pool.answer("hej")
        self.anna.submit("m2")
        before = self.disk.used
        self.assertUsed(self.there())
        self.house.pool.work.clear()
        self.house.quota = before
        self.house.open()
        self.assertUsed(before)
        anna = self.house.party("anna")
        self.assertBusy(self.refusal(anna, b"\1"))
        self.house.pool.answer("hej")
        anna.ask(type="cancel", id="m1")
        anna.ask(type="cancel", id="m2")
        self.assertUsed(0)
        self.disk.quota = len(SECOND)
        self.assertEqual(anna.submit("m3")["type"], "accepted")

    def test_leftoversOfAnEarlierDaemonAreNotCounted(self) -> None:
        self.anna.say(type="submit", id="m1")
        self.anna.sound(SECOND)
        self.house.open()
        self.assertUsed(0)
        self.anna.session.lost()

    def test_theFloor(self) -> None:
        self.patch(disk, "LOOK_EVERY", 100)
        self.disk.there = 500
        self.anna.say(type="submit", id="m1")
        self.anna.sound(b"\1\0" * 49)
        self.disk.there = 499
        self.anna.sound(b"\1")
        self.assertEqual(self.anna.sent, [])
        self.anna.sound(b"\1")
        self.assertBusy(self.anna.heard(), "the disk is full")
        self.assertUsed(0)
        self.assertBusy(self.refusal(self.bjorn), "the disk is full")
        self.assertEqual(self.house.desk.refusing(), "the disk is full")
        self.disk.there = 500
        self.assertEqual(self.house.desk.refusing(), None)
        self.assertEqual(self.bjorn.submit("m1")["type"], "accepted")
