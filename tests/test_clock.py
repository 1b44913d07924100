"""The time of day: when the machine's clock is set, what is kept moves along."""

from __future__ import annotations

import time
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.fakes import FakePool, House
from tests.storagecase import transcript
from transcribed.clock import TOLERANCE, Calendar, Reading, steady
from transcribed.errors import Gone
from transcribed.service import Daemon, StateDirectory
from transcribed.settings import Settings
from transcribed.storage.sqlite import SQLiteStore
from transcribed.transcript import State

HOUR = 3600.0


class Machine:
    """A machine's two clocks."""

    def __init__(self) -> None:
        self.wall = 1_795_000_000.0
        self.passed = 50.0

    def calendar(self) -> Calendar:
        """A calendar by them."""
        return Calendar(lambda: self.wall, lambda: self.passed, lambda: "this")

    def go(self, seconds: float, drift: float = 0.0) -> None:
        """Time passes."""
        self.passed += seconds
        self.wall += seconds + drift


class CalendarTests(SynchronousTestCase):
    """A calendar over clocks of ours."""

    def setUp(self) -> None:
        self.machine = Machine()
        self.calendar = self.machine.calendar()

    def test_timePasses(self) -> None:
        self.assertEqual(self.calendar.now(), 1_795_000_000.0)
        self.machine.go(12.5)
        self.assertEqual((self.calendar.now(), self.calendar.step()), (1_795_000_012.5, 0.0))

    def test_aClockThatIsSet(self) -> None:
        for moved in (HOUR, -HOUR, 10 * 365 * 86400.0, TOLERANCE + 0.5, -TOLERANCE - 0.5):
            before = self.calendar.now()
            self.machine.wall += moved
            self.assertEqual(self.calendar.now(), before, "nobody has noticed yet")
            self.assertEqual(self.calendar.step(), moved)
            self.assertEqual(self.calendar.now(), self.machine.wall)
            self.assertEqual(self.calendar.step(), 0.0, "it is told once")

    def test_littleIsFollowedWithoutAWord(self) -> None:
        for moved in (TOLERANCE, -TOLERANCE, 0.5):
            self.machine.wall += moved
            self.assertEqual(self.calendar.step(), 0.0)
            self.assertEqual(self.calendar.now(), self.machine.wall)

    def test_aClockThatIsSlewed(self) -> None:
        """By NTP, a little each second for an hour: no step is ever told."""
        steps = []
        for _ in range(3600):
            self.machine.go(1.0, drift=0.0005)
            steps.append(self.calendar.step())
        self.assertEqual({*steps}, {0.0})
        self.assertAlmostEqual(self.calendar.now(), self.machine.wall, 3)

    def test_aStepThatCouldNotBeFollowed(self) -> None:
        before = self.calendar.now()
        self.machine.wall += HOUR
        self.calendar.undo(self.calendar.step())
        self.assertEqual(self.calendar.now(), before)
        self.machine.go(1.0)
        self.assertEqual(self.calendar.now(), before + 1.0)
        self.assertEqual((self.calendar.step(), self.calendar.step()), (HOUR, 0.0))

    def test_theMachinesOwnClocks(self) -> None:
        calendar = Calendar()
        self.assertLess(abs(calendar.now() - time.time()), 1.0)
        before = steady()
        self.assertEqual(calendar.step(), 0.0)
        self.assertGreaterEqual(steady(), before)


class HouseTests(SynchronousTestCase):
    """What a shift of the store does to those who wait."""

    def test_whatIsKeptLivesAsLongAsItWasPromised(self) -> None:
        for moved in (24 * HOUR, -24 * HOUR):
            house = House(Path(self.mktemp()))
            anna = house.party("anna")
            anna.submit("m1", ttl=60)
            house.pool.answer("hej")
            offset = moved
            house.desk.now = house.desk._uploads.now = lambda h=house, o=offset: (  # type: ignore
                h.clock.seconds() + o
            )
            for way in (0.0, moved):
                self.successResultOf(house.store.follow(Reading("this", way)))
            house.clock.advance(59)
            house.purge()
            self.assertEqual(anna.ask(type="status", id="m1")["state"], "ready")
            self.assertEqual(anna.ask(type="fetch", id="m1")["text"], "hej")
            house.clock.advance(2)
            house.purge()
            self.assertEqual(anna.ask(type="status", id="m1")["code"], "gone")
            self.assertEqual(house.spool.names(), [])


class DaemonTests(TestCase):
    """A daemon moves what it keeps before it looks for what has expired."""

    timeout = 30

    async def test_thePurge(self) -> None:
        path = Path(self.mktemp())
        state = StateDirectory(path)
        machine = Machine()
        calendar = machine.calendar()
        SQLiteStore.prepare(path / "transcripts.sqlite", calendar.reading)
        settings = Settings.of(listen=(), state=path, model="fake")
        daemon = Daemon(settings, reactor, state, FakePool(), calendar=calendar)
        # Not all of it: its own purging would come in between.
        daemon._threads.start()
        try:
            now = machine.wall
            new = transcript(created=now, expires=now + HOUR, state=State.QUEUED)
            await daemon._store.accept(new)
            for moved in (48 * HOUR, -72 * HOUR):
                machine.wall += moved
                await daemon._purge_now()
                kept = await daemon._store.look("anna", "m1", "anna", machine.wall)
                self.assertEqual(kept.expires, machine.wall + HOUR)
                self.assertEqual(kept.state, State.QUEUED)
            # Where it cannot be stored, nothing expires, and it is tried again.
            machine.wall += 48 * HOUR
            broken = self.patch(daemon._store, "follow", lambda _: fail(OSError("full")))
            await daemon._purge_now()
            broken.restore()
            self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
            await daemon._purge_now()
            kept = await daemon._store.look("anna", "m1", "anna", machine.wall)
            self.assertEqual((kept.expires, kept.state), (machine.wall + HOUR, State.QUEUED))
            # The next daemon finds out what was done while there was none.
            machine.wall += 48 * HOUR
            later = machine.calendar().reading
            self.assertEqual(SQLiteStore.prepare(path / "transcripts.sqlite", later), 48 * HOUR)
            calendar.step()
            await daemon._purge_now()
            kept = await daemon._store.look("anna", "m1", "anna", machine.wall)
            self.assertEqual((kept.expires, kept.state), (machine.wall + HOUR, State.QUEUED))
            machine.go(HOUR + 1)
            await daemon._purge_now()
            gone = daemon._store.look("anna", "m1", "anna", machine.wall)
            await self.assertFailure(gone, Gone)
        finally:
            await Deferred.fromCoroutine(daemon._stop())
