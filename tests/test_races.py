"""What happens while the disk or a worker takes its time: cancel, expiry, another job, a stop."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import FakePool, House, ImmediateSpool, Party
from transcribed.spool import SAY_EVERY, Undeleted

SECOND = b"\1\0" * 16000
TEXT = "hemligt"


class HeldSpool(ImmediateSpool):
    """A disk that does nothing until it is let."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.holding = False
        self.held: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def inThread(self, work: Callable[[], Any]) -> Deferred[Any]:
        """Run `work` now, or keep it for :meth:`let`."""
        if not self.holding:
            return super().inThread(work)
        done: Deferred[Any] = Deferred()
        self.held.append((work, done))
        return done

    def let(self) -> None:
        """Do what was asked meanwhile, and all that follows from it."""
        self.holding = False
        while self.held:
            work, done = self.held.pop(0)
            super().inThread(work).chainDeferred(done)


class HeldHouse(House):
    """A house with such a disk."""

    spool: HeldSpool
    hold = False

    def make_spool(self) -> HeldSpool:
        """The disk."""
        spool = HeldSpool(self.directory)
        spool.holding = self.hold
        return spool

    def reopen(self, hold: bool) -> None:
        """Start again, with a disk that holds from the first moment on."""
        self.hold = hold
        self.open()


class Case(SynchronousTestCase):
    """Anna on two lines, and what she must never see."""

    def setUp(self) -> None:
        self.house = HeldHouse(Path(self.mktemp()), pool=FakePool(2))
        self.anna = self.house.party("anna")
        self.other = self.house.party("anna")

    def text_on_disk(self) -> bool:
        return any(TEXT.encode() in p.read_bytes() for p in self.house.directory.iterdir())

    def fetch(self, party: Party, id: str = "m1") -> dict[str, Any]:
        return party.ask(type="fetch", id=id, wait=False)


class TextTests(Case):
    """The text is being written, and then nobody wants it."""

    def test_cancelled(self) -> None:
        self.anna.submit("m1")
        self.house.spool.holding = True
        self.house.pool.answer(TEXT)
        self.anna.say(type="cancel", id="m1")
        self.assertEqual(self.anna.sent, [], "not before it is gone")
        self.house.spool.let()
        self.assertEqual(self.anna.heard()["type"], "cancelled")
        self.assertEqual(self.house.spool.names(), [])

    def test_expired(self) -> None:
        self.anna.submit("m1", ttl=10)
        self.house.spool.holding = True
        self.house.pool.answer(TEXT)
        self.house.clock.advance(10)
        self.house.purge()
        self.house.spool.let()
        self.assertEqual(self.house.spool.names(), [])

    def test_cancelled_while_it_waits_to_be_stored_again(self) -> None:
        self.anna.submit("m1")
        self.house.store.pool.broken = RuntimeError("locked")
        self.house.pool.answer(TEXT)
        self.house.store.pool.broken = None
        self.anna.ask(type="cancel", id="m1")
        self.house.clock.advance(60)
        self.assertEqual(self.house.spool.names(), [])

    def test_progress_does_not_fall_back(self) -> None:
        self.anna.submit("m1", SECOND * 60)
        self.house.pool.answer("a")
        self.house.pool.answer("b")
        self.house.spool.holding = True
        self.house.pool.answer(TEXT)
        self.assertEqual(self.anna.ask(type="status", id="m1")["progress"], 1.0)
        self.assertEqual(len(self.house.scheduler), 1)
        self.house.spool.let()
        self.assertEqual(len(self.house.scheduler), 0)


class DeletingTests(Case):
    """What cannot be deleted at once is deleted later."""

    def setUp(self) -> None:
        super().setUp()
        self.anna.submit("m1", ttl=10)

    def broken(self, doing: Callable[[], object]) -> None:
        """Do something while no file can be deleted."""

        def refuse(path: Path, missing_ok: bool = False) -> None:
            raise OSError(5, "input/output error")

        patch = self.patch(Path, "unlink", refuse)
        doing()
        patch.restore()

    def assertPurgeFails(self) -> None:
        self.failureResultOf(Deferred.fromCoroutine(self.house.desk.keep_house()), Undeleted)

    def test_one_that_stays_keeps_no_other(self) -> None:
        for n in range(5):
            self.anna.submit(f"n{n}", ttl=10)
        self.house.clock.advance(10)
        self.broken(self.assertPurgeFails)
        self.assertEqual(len(self.house.spool.names()), 12)
        stays = min(self.house.directory.glob("*.audio"))
        stays.unlink()
        stays.mkdir()
        self.assertPurgeFails()
        self.assertEqual(list(self.house.directory.iterdir()), [stays])
        stays.rmdir()
        self.house.purge()
        self.assertEqual(self.house.spool.names(), [])
        self.successResultOf(Deferred.fromCoroutine(self.house.desk.keep_house()))

    def test_it_is_said_once_in_a_while(self) -> None:
        passed = [0.0]
        self.house.spool._monotonic = lambda: passed[0]
        self.house.clock.advance(10)
        with capturedLogs() as logs:
            for _ in range(5):
                self.broken(self.assertPurgeFails)
            said = [event["path"] for event in logs if "path" in event]
            self.assertEqual(len(said), 3, "audio, windows and the place of the text")
            self.assertEqual(len(set(said)), 3)
            passed[0] = SAY_EVERY
            self.broken(self.assertPurgeFails)
            self.assertEqual(len([event for event in logs if "path" in event]), 6)

    def test_a_cancel_that_cannot_delete(self) -> None:
        other = self.house.party("anna")
        other.say(type="fetch", id="m1")
        self.broken(lambda: self.anna.say(type="cancel", id="m1"))
        self.assertEqual(self.anna.heard()["code"], "internal")
        self.assertEqual(len(self.flushLoggedErrors(Undeleted)), 1)
        self.assertEqual(other.heard()["code"], "gone", "whoever waits is told")

    def test_the_audio(self) -> None:
        self.broken(lambda: self.house.pool.answer(TEXT))
        self.flushLoggedErrors(OSError)
        self.assertEqual(self.fetch(self.anna)["text"], TEXT)
        self.assertIn(".audio", self.house.spool.names())
        self.house.purge()
        self.assertEqual(self.house.spool.names(), [".text"])

    def test_the_text_when_it_expires(self) -> None:
        self.house.pool.answer(TEXT)
        self.house.clock.advance(10)
        self.anna.ask(type="subscribe")
        self.broken(self.assertPurgeFails)
        self.assertEqual(self.anna.heard()["state"], "expired", "it is told all the same")
        self.assertTrue(self.text_on_disk())
        self.house.purge()
        self.assertEqual(self.house.spool.names(), [])

    def test_the_text_when_it_is_acked(self) -> None:
        self.house.pool.answer(TEXT)
        self.fetch(self.anna)
        self.broken(lambda: self.anna.say(type="ack", id="m1"))
        self.assertEqual(self.anna.heard()["code"], "internal")
        self.flushLoggedErrors(OSError)
        self.house.purge()
        self.assertEqual(self.house.spool.names(), [])


class UploadTests(Case):
    """An upload that is cancelled from another line."""

    def upload(self, party: Party, id: str = "m1") -> None:
        party.say(type="submit", id=id)
        party.sound(SECOND)

    def test_while_it_is_being_kept(self) -> None:
        self.upload(self.anna)
        self.house.spool.holding = True
        self.anna.say(type="end", id="m1")
        self.other.say(type="cancel", id="m1")
        self.assertEqual(self.other.sent, [])
        self.house.spool.let()
        self.assertEqual(self.anna.heard()["type"], "accepted")
        self.assertEqual(self.other.heard()["type"], "cancelled")
        self.assertEqual(self.house.spool.names(), [])

    def test_while_another_is_being_kept(self) -> None:
        third = self.house.party("anna")
        self.upload(self.anna)
        self.upload(third)
        self.house.spool.holding = True
        self.anna.say(type="end", id="m1")
        self.other.say(type="cancel", id="m1")
        self.assertEqual(third.heard()["code"], "gone")
        self.upload(third, "m2")
        self.house.spool.let()
        self.assertEqual(self.other.heard()["type"], "cancelled")
        self.assertEqual(third.ask(type="end", id="m2")["type"], "accepted")

    def test_whose_record_may_or_may_not_be_there(self) -> None:
        """A commit that reports an error: the audio must not go before that is known."""
        self.upload(self.anna)
        run = self.house.store.pool.runInteraction

        def commit_and_fail(work: Callable[[Any], Any]) -> Deferred[Any]:
            return run(work).addCallback(lambda _: fail(RuntimeError("disk I/O error")))

        self.house.store.pool.runInteraction = commit_and_fail  # type: ignore[method-assign]
        answer = self.anna.ask(type="end", id="m1")
        self.house.store.pool.runInteraction = run  # type: ignore[method-assign]
        self.assertEqual(answer["code"], "internal")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.house.purge()
        self.house.pool.answer(TEXT)
        self.assertEqual(self.fetch(self.house.party("anna"))["text"], TEXT)

    def test_whose_record_is_not_there(self) -> None:
        self.upload(self.anna)
        self.house.store.pool.broken = RuntimeError("the database is locked")
        self.assertEqual(self.anna.ask(type="end", id="m1")["code"], "internal")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.house.store.pool.broken = None
        self.house.purge()
        self.house.pool.answer(TEXT)
        self.assertEqual(self.house.spool.names(), [])
        self.assertEqual(self.other.ask(type="status", id="m1")["code"], "unknown-id")

    def refuse_to_unlink(self) -> Any:
        """From now on no file can be deleted, until what this answers is restored."""

        def refuse(path: Path, missing_ok: bool = False) -> None:
            raise OSError(5, "input/output error")

        return self.patch(Path, "unlink", refuse)

    def assertCancelled(self, party: Party, code: str = "") -> None:
        """A cancel is answered so, and where nothing else is said, nothing is left."""
        party.say(type="cancel", id="m1")
        answer = party.heard()
        self.assertEqual(answer.get("code", ""), code, answer)
        self.assertEqual(self.house.spool.names() == [], not code)
        if code:
            self.assertEqual(party.closed, (1011, "internal error"))
            self.assertEqual(len(self.flushLoggedErrors(Undeleted)), 1)

    def test_cancelled_and_cannot_be_deleted(self) -> None:
        """No cancel is answered before the audio is gone, be it its own line's or another's."""
        for canceller in (self.anna, self.other):
            uploader = self.house.party("anna") if canceller is self.other else self.anna
            self.upload(uploader)
            broken = self.refuse_to_unlink()
            self.assertCancelled(canceller, "internal")
            self.assertCancelled(self.house.party("anna"), "internal")
            if uploader is not canceller:
                self.assertEqual(uploader.heard()["code"], "gone")
            broken.restore()
            self.assertCancelled(self.house.party("anna"))
            answer = self.house.party("anna").ask(type="cancel", id="m1")
            self.assertEqual(answer["code"], "unknown-id")
            self.assertEqual(self.house.desk._uploads._remains, {})

    def test_accepted_beside_one_that_cannot_be_deleted(self) -> None:
        self.upload(self.anna)
        broken = self.refuse_to_unlink()
        self.anna.session.lost()
        broken.restore()
        self.other.submit("m1")
        self.assertEqual(len(self.house.spool.names()), 4)
        self.assertCancelled(self.other)

    def test_one_file_that_cannot_be_deleted_keeps_no_other(self) -> None:
        self.upload(self.anna)
        (path,) = self.house.directory.glob("*.audio")
        path.unlink()
        path.mkdir()
        self.anna.session.lost()
        self.assertEqual(self.house.spool.names(), [".audio"])
        path.rmdir()

    def test_that_cannot_be_deleted(self) -> None:
        self.house.max_queue = 1
        self.house.open()
        anna = self.house.party("anna")
        anna.ask(type="subscribe")
        self.upload(anna)
        broken = self.patch(
            os, "unlink", lambda path, dir_fd=None: (_ for _ in ()).throw(OSError(5, "broken"))
        )
        anna.session.lost()
        broken.restore()
        self.assertEqual(self.house.spool.names(), [".audio", ".windows"])
        self.assertEqual(self.house.spool.disk.used, len(SECOND), "what is there counts")
        self.house.purge()
        self.assertEqual((self.house.spool.names(), self.house.spool.disk.used), ([], 0))
        other = self.house.party("anna")
        self.assertEqual(other.submit("m2")["type"], "accepted", "its place in the queue is free")
        self.assertEqual(anna.sent, [], "nobody is told any more")


class WindowTests(Case):
    """The result of an upload's window is being kept, and the upload ends."""

    def setUp(self) -> None:
        super().setUp()
        self.anna.say(type="submit", id="m1")
        self.anna.sound(SECOND * 40)
        self.house.spool.holding = True
        self.house.pool.answer(TEXT)

    def test_broken_off(self) -> None:
        self.anna.session.lost()
        self.house.spool.let()
        self.assertEqual(self.house.spool.names(), [])

    def test_accepted(self) -> None:
        self.anna.say(type="end", id="m1")
        self.house.spool.let()
        self.assertEqual(self.anna.heard()["type"], "accepted")
        self.assertTrue(self.text_on_disk())
        self.house.pool.answer("slut")
        self.assertEqual(self.fetch(self.anna)["text"], f"{TEXT} slut")

    def test_done_before_it_is_known_to_be_accepted(self) -> None:
        """All but the last window are done when it is; no result is told before."""
        self.other.ask(type="subscribe")
        self.anna.say(type="end", id="m1")
        self.assertEqual(self.house.pool.work, [])
        self.assertEqual(self.other.sent, [])
        self.house.spool.let()
        events = [(event["state"], event["progress"]) for event in self.other.sent]
        self.assertEqual(events, [("queued", 0.5), ("transcribing", 0.5)])

    def test_cancelled_while_it_is_being_kept(self) -> None:
        self.anna.say(type="end", id="m1")
        self.other.say(type="cancel", id="m1")
        self.house.spool.let()
        self.assertEqual(self.anna.heard()["type"], "accepted")
        self.assertEqual(self.other.heard()["type"], "cancelled")
        self.house.pool.answer(TEXT)
        self.assertEqual(self.house.spool.names(), [])

    def test_expired_at_once(self) -> None:
        self.house.spool.let()
        self.anna.ask(type="end", id="m1")
        self.house.clock.advance(3600)
        self.house.purge()
        self.house.pool.answer(TEXT)
        self.assertEqual(self.house.spool.names(), [])


class RestartTests(Case):
    """What is accepted while an earlier daemon's recordings are still being taken up."""

    def test_it_is_taken_up_once(self) -> None:
        self.anna.submit("old")
        self.house.pool.work.clear()
        self.house.reopen(hold=True)
        anna = self.house.party("anna")
        anna.say(type="submit", id="new")
        anna.sound(SECOND)
        anna.say(type="end", id="new")
        self.house.spool.let()
        self.assertEqual(self.successResultOf(self.house.resumed), (1, 0))
        self.assertEqual(len(self.house.pool.work), 2)
        self.house.pool.answer("ett")
        self.house.pool.answer("ett")
        self.assertEqual(self.house.pool.work, [])
        for id in ("old", "new"):
            self.assertEqual(self.fetch(self.house.party("anna"), id)["text"], "ett")

    def test_it_is_cancelled_meanwhile(self) -> None:
        self.anna.submit("old")
        self.house.pool.work.clear()
        self.house.reopen(hold=True)
        anna = self.house.party("anna")
        anna.say(type="cancel", id="old")
        self.house.spool.let()
        self.assertEqual(anna.heard()["type"], "cancelled")
        self.assertEqual(self.house.pool.work, [])
        self.assertEqual(self.house.spool.names(), [])

    def test_one_that_cannot_be_read(self) -> None:
        self.anna.submit("bad")
        self.house.clock.advance(1)
        self.anna.submit("good")
        self.house.pool.work.clear()
        windows = sorted(self.house.directory.glob("*.windows"))
        bad = next(p for p in windows if p.stem == self.key("bad"))
        bad.unlink()
        bad.mkdir()
        self.house.open()
        self.assertEqual(len(self.flushLoggedErrors(IsADirectoryError)), 1)
        self.assertEqual(self.successResultOf(self.house.resumed), (1, 0))
        bad.rmdir()
        self.house.clock.advance(60)
        self.house.purge()
        self.assertEqual(len(self.house.pool.work), 2)

    def test_all_of_it_is_tried_again(self) -> None:
        for call in ("unfinished", "live"):
            with self.subTest(call):
                self.setUp()
                self.anna.submit("old")
                (self.house.directory / "stray.audio").touch()
                self.house.pool.work.clear()
                patch = self.patch(
                    self.house.store, call, lambda: fail(OSError(5, "input/output error"))
                )
                self.house.open()
                self.failureResultOf(self.house.resumed, OSError)
                anna = self.house.party("anna")
                for id in ("done", "new", "open"):
                    anna.say(type="submit", id=id)
                    anna.sound(SECOND)
                    if id != "open":
                        anna.say(type="end", id=id)
                self.house.pool.answer("nytt")
                self.house.purge()
                self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
                patch.restore()
                kept = {p.name for p in self.house.directory.iterdir()} - {"stray.audio"}
                self.house.clock.advance(60)
                self.house.purge()
                self.assertEqual({p.name for p in self.house.directory.iterdir()}, kept)
                jobs = sorted(j.transcript.id for j in self.house.scheduler._jobs.values())
                self.assertEqual(jobs, ["new", "old", "open"])
                anna.sound(SECOND)
                self.house.clock.advance(60)
                self.house.purge()
                self.assertEqual(len(self.house.scheduler._jobs), 3, "and once only")
                while self.house.pool.work:
                    self.house.pool.answer("hej")
                self.assertEqual(self.fetch(self.house.party("anna"), "old")["text"], "hej")

    def test_what_is_being_accepted_is_not_an_earlier_daemons(self) -> None:
        """It is tried again while a commit is there, and its answer is not."""
        patch = self.patch(self.house.store, "live", lambda: fail(OSError(5, "broken")))
        self.house.open()
        self.failureResultOf(self.house.resumed, OSError)
        patch.restore()
        anna = self.house.party("anna")
        anna.say(type="submit", id="new")
        anna.sound(SECOND)
        answers: list[Deferred[Any]] = []
        run = self.house.store.pool.runInteraction

        def held(work: Callable[[Any], Any]) -> Deferred[Any]:
            done = run(work)
            answers.append(Deferred())
            return answers[-1].addCallback(lambda _: done)

        self.house.store.pool.runInteraction = held  # type: ignore[method-assign]
        anna.say(type="end", id="new")
        self.house.store.pool.runInteraction = run  # type: ignore[method-assign]
        self.house.purge()
        self.assertEqual(self.house.desk._left, {})
        self.assertEqual(self.house.pool.work, [])
        answers[0].callback(None)
        self.assertEqual(anna.heard()["type"], "accepted")
        self.assertEqual(len(self.house.pool.work), 1)

    def test_a_file_that_stays_does_not_keep_it_from_going_on(self) -> None:
        self.anna.submit("old")
        self.house.pool.work.clear()
        (self.house.directory / "stray.audio").touch()

        def refuse(path: Path, missing_ok: bool = False) -> None:
            raise OSError(5, "input/output error")

        patch = self.patch(Path, "unlink", refuse)
        self.house.open()
        self.assertEqual(self.successResultOf(self.house.resumed), (1, 0))
        self.assertEqual(len(self.flushLoggedErrors(Undeleted)), 1)
        patch.restore()
        self.house.purge()
        self.assertEqual(self.house.spool.names(), [".audio", ".windows"])

    def key(self, id: str) -> str:
        found = self.successResultOf(self.house.store.look("anna", id, "anna", 0.0))
        return found.key


class StopTests(Case):
    """A worker that is stopped is no fault of its window."""

    def test_after_two_tries(self) -> None:
        self.anna.submit("m1")
        self.house.pool.fail()
        self.house.pool.fail()
        self.house.dispatcher.drain()
        self.house.pool.fail("the worker is being stopped")
        self.assertEqual(self.anna.ask(type="status", id="m1")["state"], "transcribing")
        self.assertEqual(self.house.spool.names(), [".audio", ".windows"])
