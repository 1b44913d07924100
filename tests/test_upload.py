"""Uploads that are transcribed while they come in, and all the ways in which they can end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import MODEL, FakePool, House, Party
from transcribed.errors import Busy
from transcribed.recognition import cut

RATE = 16000
SECOND = b"\1\0" * RATE


def refuse(*_: object) -> Any:
    """What a full disk does."""
    raise Busy("the disk is full", 30.0)


class Case(SynchronousTestCase):
    """A house with two workers, and Anna, who uploads."""

    model = MODEL

    def setUp(self) -> None:
        self.house = House(Path(self.mktemp()), pool=FakePool(2, self.model))
        self.anna = self.house.party("anna")
        self.other = self.house.party("anna")

    def tearDown(self) -> None:
        self.assertEqual(self.house.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    @property
    def work(self) -> list[int]:
        """The positions of the windows in work."""
        return [batch.window.position for batch in self.house.pool.work]

    def upload(self, seconds: float, party: Party | None = None, id: str = "m1") -> Party:
        """Begin one; it is left open."""
        party = party or self.anna
        party.say(type="submit", id=id, receiver="bjorn")
        party.sound(SECOND * int(seconds))
        return party

    def end(self, **more: object) -> dict[str, Any]:
        return self.anna.ask(type="end", id="m1", **more)

    def accept(self) -> None:
        answer = self.end()
        self.assertEqual((answer["type"], answer.get("state")), ("accepted", "queued"), answer)

    def status(self) -> tuple[str, float]:
        answer = self.other.ask(type="status", id="m1")
        return answer["state"], answer["progress"]

    def text(self) -> str:
        answer = self.other.ask(type="fetch", id="m1", wait=False)
        self.assertEqual(answer["type"], "transcript", answer)
        return str(answer["text"])

    def stored_lines(self) -> int:
        (path,) = self.house.directory.glob("*.windows")
        return len(path.read_bytes().split())

    def assertNothingLeft(self) -> None:
        self.assertEqual(self.house.spool.names(), [])
        self.assertEqual(len(self.house.scheduler._jobs), 0)
        self.assertEqual(self.other.ask(type="status", id="m1")["code"], "unknown-id")

    def restart(self) -> None:
        """As after a kill: what was in work is forgotten, the disk is as it is."""
        self.house.pool.work.clear()
        self.house.open()
        self.anna, self.other = self.house.party("anna"), self.house.party("anna")


class StreamingTests(Case):
    """What is left to do at the end is the last window."""

    def test_windows_are_dealt_before_the_end(self) -> None:
        self.upload(26)
        self.assertEqual(self.work, [])
        self.anna.sound(b"\1")
        self.assertEqual(self.work, [], "half a sample")
        self.anna.sound(b"\0")
        self.assertEqual(self.work, [0])
        (piece,) = self.house.pool.work[0].pieces
        self.assertEqual((piece.window.start, piece.window.stop), (0, 26 * RATE))
        self.assertGreater(Path(piece.audio.path).stat().st_size, 26 * RATE * 2)
        self.anna.sound(SECOND * 30)
        self.assertEqual(self.work, [0, 1])
        self.house.pool.answer("ett")
        self.house.pool.answer("två")
        self.assertEqual(self.stored_lines(), 2)
        self.assertEqual(self.status(), ("uploading", 0.0))
        self.accept()
        self.assertEqual(self.work, [2])
        self.assertEqual(self.status(), ("transcribing", 0.6667))
        self.house.pool.answer("tre")
        self.assertEqual(self.text(), "ett två tre")
        self.assertEqual(self.house.spool.names(), [".text"])

    def test_however_it_is_cut_into_frames(self) -> None:
        data = SECOND * 90
        whole = cut(90 * RATE, RATE, MODEL.core, MODEL.context)
        for size in (len(data), 2 * len(SECOND) - 1, 99_991):
            self.setUp()
            self.house.pool.workers = 100
            self.anna.say(type="submit", id="m1")
            for start in range(0, len(data), size):
                self.anna.sound(data[start : start + size])
            windows = [batch.window for batch in self.house.pool.work]
            self.assertEqual(windows, whole[:-1])
            self.accept()
            self.assertEqual(self.house.pool.work[-1].window, whole[-1])

    def test_a_short_one_is_not_looked_up(self) -> None:
        asked: list[tuple[Any, ...]] = []
        look = self.house.store.look

        def observed(*arguments: Any) -> Any:
            asked.append(arguments)
            return look(*arguments)

        self.patch(self.house.store, "look", observed)
        self.upload(26)
        self.assertEqual(asked, [])
        for _ in range(5):
            self.anna.sound(SECOND)
        self.assertEqual(len(asked), 1)

    def test_events_follow_the_windows(self) -> None:
        self.other.ask(type="subscribe")
        self.upload(70)
        self.house.pool.answer("ett")
        self.assertEqual(self.other.sent, [])
        self.accept()
        while self.house.pool.work:
            self.house.pool.answer("ord")
        self.assertEqual(
            [(event["state"], event["progress"]) for event in self.other.sent],
            [
                ("queued", 0.25),
                ("transcribing", 0.25),
                ("transcribing", 0.5),
                ("transcribing", 0.75),
                ("ready", 1.0),
            ],
        )

    def test_in_work_when_it_is_accepted(self) -> None:
        self.house.pool.workers = 1
        self.upload(30)
        self.accept()
        self.assertEqual((self.work, self.status()), ([0], ("transcribing", 0.0)))

    def test_queued_when_nothing_of_it_was_in_work(self) -> None:
        self.house.pool.workers = 0
        self.upload(30)
        self.accept()
        self.assertEqual((self.work, self.status()), ([], ("queued", 0.0)))

    def test_whoever_waits_is_given_the_text(self) -> None:
        bjorn = self.house.party("bjorn")
        self.upload(30)
        bjorn.say(type="fetch", id="m1", owner="anna")
        self.house.pool.answer("ett")
        self.accept()
        self.house.pool.answer("två")
        self.assertEqual(bjorn.heard()["text"], "ett två")

    def test_a_short_message_overtakes_an_upload(self) -> None:
        self.house.pool.workers = 1
        self.upload(90)
        self.other.submit("short")
        self.house.party("bjorn").submit("b1")
        order = []
        for _ in range(3):
            order.append(self.house.pool.work[0].window.stop // RATE)
            self.house.pool.answer("ord")
        self.assertEqual(order, [26, 1, 1])

    def test_a_disk_that_is_full_from_the_beginning(self) -> None:
        self.house.max_queue = 1
        self.restart()
        patch = self.patch(self.house.spool, "take_in", refuse)
        self.assertEqual(self.anna.ask(type="submit", id="m1")["code"], "busy")
        patch.restore()
        self.assertEqual(self.anna.submit("m2")["type"], "accepted", "its place is free")

    def test_the_queues_bound(self) -> None:
        self.house.max_queue = 1
        self.restart()
        self.upload(30)
        answer = self.other.ask(type="submit", id="m2")
        self.assertEqual((answer["code"], answer["retry_after"]), ("busy", 10.0))
        self.anna.session.lost()
        self.assertEqual(self.other.submit("m3")["type"], "accepted")


class BrokenOffTests(Case):
    """An upload that is not accepted, with windows done, in work and waiting."""

    def begin(self) -> None:
        self.upload(95)
        self.house.pool.answer("hemligt")
        self.assertEqual((self.work, self.stored_lines()), ([1, 2], 1))

    def ends(self, name: str) -> None:
        """One of the ways to end."""
        if name == "lost":
            self.anna.session.lost()
        elif name == "cancelled":
            self.assertEqual(self.anna.ask(type="cancel", id="m1")["type"], "cancelled")
        elif name == "cancelled from elsewhere":
            self.assertEqual(self.other.ask(type="cancel", id="m1")["type"], "cancelled")
        elif name == "second submit":
            self.anna.ask(type="submit", id="m2")
        elif name == "bad end":
            self.end(sha256=5)
        elif name == "bad digest":
            self.assertEqual(self.end(sha256="00" * 32)["code"], "bad-audio")
        elif name == "not whole":
            self.anna.sound(b"\0")
            self.assertEqual(self.end()["code"], "bad-audio")
        elif name == "too long":
            self.anna.sound(SECOND * 6)
            self.assertEqual(self.anna.heard()["code"], "too-long")
        elif name == "full disk":
            (upload,) = self.house.desk._uploads.named("anna", "m1")
            self.patch(upload._intake, "write", refuse)
            self.anna.sound(SECOND)
            self.assertEqual(self.anna.heard()["code"], "busy")

    WAYS = (
        *("lost", "cancelled", "cancelled from elsewhere", "second submit", "bad end"),
        *("bad digest", "not whole", "too long", "full disk"),
    )

    def test_what_was_in_work_is_thrown_away(self) -> None:
        for late in ("answer", "fail"):
            for way in self.WAYS:
                self.setUp()
                with capturedLogs() as logged:
                    self.begin()
                    self.ends(way)
                    self.assertNothingLeft()
                    for _ in range(2):
                        if late == "answer":
                            self.house.pool.answer("hemligt")
                        else:
                            self.house.pool.fail("the recording cannot be read from the spool")
                self.assertEqual(self.work, [], "it is not tried again")
                self.assertNothingLeft()
                loud = [event for event in logged if event["log_level"] > LogLevel.info]
                self.assertEqual(loud, [], way)
                self.assertNotIn("hemligt", str(logged))

    def test_workers_are_free_for_others_then(self) -> None:
        self.begin()
        self.ends("lost")
        self.other.submit("m2")
        self.house.pool.answer("hemligt")
        self.house.pool.answer("hemligt")
        self.house.pool.answer("hej")
        answer = self.other.ask(type="fetch", id="m2")
        self.assertEqual(answer["text"], "hej")

    def test_the_same_again(self) -> None:
        """Late results of the first are not taken for the second's."""
        self.begin()
        self.ends("lost")
        self.anna = self.house.party("anna")
        self.upload(95)
        self.house.pool.answer("fel")
        self.house.pool.answer("fel")
        self.accept()
        while self.house.pool.work:
            self.house.pool.answer("rätt")
        self.assertEqual(set(self.text().split()), {"rätt"})

    def test_killed(self) -> None:
        self.begin()
        self.restart()
        self.assertNothingLeft()


class RepeatTests(Case):
    """What is sent again is not transcribed again."""

    def again(self, seconds: int = 40) -> dict[str, Any]:
        self.upload(seconds)
        self.assertEqual(self.house.pool.work, [])
        return self.end()

    def submit(self) -> None:
        self.upload(40)
        self.accept()
        self.house.pool.answer("ett")
        self.house.pool.answer("två")

    def test_of_a_ready_one(self) -> None:
        self.submit()
        self.assertEqual(self.again()["state"], "ready")
        self.assertEqual(self.house.spool.names(), [".text"])
        self.assertEqual(self.again(50)["code"], "id-taken")
        self.assertEqual(self.house.spool.names(), [".text"])

    def test_of_one_that_is_gone(self) -> None:
        self.submit()
        self.anna.ask(type="cancel", id="m1")
        self.assertEqual(self.again()["state"], "cancelled")
        self.assertEqual(self.house.spool.names(), [])

    def test_of_one_that_is_coming_in(self) -> None:
        """A client that has lost its connection, before the daemon knows."""
        self.upload(40, self.other)
        self.upload(40)
        self.assertEqual(self.work, [0], "once")
        self.assertEqual(self.other.ask(type="end", id="m1")["type"], "accepted")
        self.assertEqual(self.end()["state"], "transcribing")
        self.house.pool.answer("ett")
        self.house.pool.answer("två")
        self.assertEqual((self.text(), self.house.spool.names()), ("ett två", [".text"]))

    def test_once_the_other_is_gone(self) -> None:
        self.upload(40, self.other)
        self.upload(40)
        self.other.session.lost()
        self.house.pool.answer("sent")
        self.other = self.house.party("anna")
        self.assertEqual(self.work, [])
        self.anna.sound(SECOND)
        self.assertEqual(self.work, [0])
        self.accept()
        self.house.pool.answer("ett")
        self.house.pool.answer("två")
        self.assertEqual(self.text(), "ett två")

    def test_found_out_at_the_end(self) -> None:
        """Another with that name is accepted while windows of this one are in work."""
        for seconds, answered in ((48, "accepted"), (27, "error")):
            self.setUp()
            self.upload(48)
            self.house.pool.answer("fel")
            self.assertEqual(self.work, [1])
            self.upload(seconds, self.other)
            self.assertEqual(self.other.ask(type="end", id="m1")["type"], "accepted")
            self.assertEqual(self.end()["type"], answered)
            self.house.pool.fail("the recording cannot be read from the spool")
            while self.house.pool.work:
                self.house.pool.answer("rätt")
            self.assertEqual(set(self.text().split()), {"rätt"})
            self.assertEqual(self.house.spool.names(), [".text"])


class FailureTests(Case):
    """A window that fails for good before the upload has ended."""

    def setUp(self) -> None:
        super().setUp()
        self.house.pool.workers = 1
        self.other.ask(type="subscribe")
        self.upload(50)
        for _ in range(3):
            self.house.pool.fail("poison")

    def test_the_upload_goes_on_and_fails_once_accepted(self) -> None:
        self.assertEqual(self.work, [])
        self.anna.sound(SECOND * 40)
        self.assertEqual(self.work, [], "no more of it is transcribed")
        self.assertEqual(self.status(), ("uploading", 0.0))
        self.accept()
        states = [self.other.heard()["state"] for _ in range(len(self.other.sent))]
        self.assertEqual(states, ["queued", "failed"])
        answer = self.other.ask(type="fetch", id="m1")
        self.assertEqual((answer["code"], answer["reason"]), ("failed", "poison"))
        self.assertEqual(self.house.spool.names(), [])
        self.assertEqual(len(self.house.scheduler), 0)

    def test_that_is_never_accepted(self) -> None:
        self.anna.session.lost()
        self.assertNothingLeft()
        self.assertEqual(self.other.sent, [])

    def test_with_another_window_in_work(self) -> None:
        self.house.pool.workers = 2
        anna = self.house.party("anna")
        self.upload(50, anna, "m2")
        self.house.pool.work.reverse()
        self.assertEqual(self.work, [1, 0])
        for _ in range(3):
            self.house.pool.fail("poison")
            self.house.pool.work.reverse()
        self.house.pool.answer("sent")
        self.assertEqual(self.work, [])
        self.assertEqual(anna.ask(type="end", id="m2")["state"], "queued")
        self.assertEqual([event["state"] for event in self.other.sent], ["queued", "failed"])


class RestartTests(Case):
    """Only what was not stored is repeated."""

    def test_after_it_was_accepted(self) -> None:
        self.upload(70)
        self.house.pool.answer("ett")
        self.house.pool.answer("två")
        self.accept()
        self.assertEqual(self.work, [2, 3])
        self.restart()
        self.assertEqual((self.work, self.status()), ([2, 3], ("transcribing", 0.5)))
        self.house.pool.answer("tre")
        self.house.pool.answer("fyra")
        self.assertEqual(self.text(), "ett två tre fyra")

    def test_with_another_model(self) -> None:
        self.upload(50)
        self.house.pool.answer("ett")
        self.accept()
        self.house.pool.model = msgspec.structs.replace(MODEL, digest="other")
        self.restart()
        self.assertEqual(self.work, [0, 1])

    def test_when_it_is_not_known_whether_it_was_accepted(self) -> None:
        """A commit that reports an error: what was done of it is done."""
        self.upload(50)
        self.house.pool.answer("ett")
        self.house.pool.answer("två")
        run = self.house.store.pool.runInteraction

        def commit_and_fail(work: Callable[[Any], Any]) -> Deferred[Any]:
            return run(work).addCallback(lambda _: fail(RuntimeError("disk I/O error")))

        self.house.store.pool.runInteraction = commit_and_fail  # type: ignore[method-assign]
        answer = self.end()
        self.house.store.pool.runInteraction = run  # type: ignore[method-assign]
        self.assertEqual(answer["code"], "internal")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.work, [])
        self.house.purge()
        self.assertEqual(self.work, [2])
        self.house.pool.answer("tre")
        self.assertEqual(self.text(), "ett två tre")


class ModelTests(Case):
    """The model is found while the upload comes in."""

    model = None  # type: ignore[assignment]

    def known(self, digest: str = MODEL.digest) -> None:
        self.house.pool.model = msgspec.structs.replace(MODEL, digest=digest)
        self.house.pool.whenFree()

    def test_while_nothing_comes_in(self) -> None:
        self.upload(50)
        self.assertEqual(self.work, [])
        self.known()
        self.assertEqual(self.work, [0, 1])
        self.accept()
        for word in ("ett", "två", "tre"):
            self.house.pool.answer(word)
        self.assertEqual(self.text(), "ett två tre")

    def test_after_the_end(self) -> None:
        self.upload(50)
        self.accept()
        self.assertEqual(self.status(), ("queued", 0.0))
        self.known()
        for word in ("ett", "två", "tre"):
            self.house.pool.answer(word)
        self.assertEqual(self.text(), "ett två tre")

    def test_a_repeat(self) -> None:
        self.upload(30)
        self.accept()
        self.upload(30)
        self.known()
        self.assertEqual(self.work, [0, 1])
        self.assertEqual(self.end()["state"], "transcribing")

    def test_broken_off(self) -> None:
        self.upload(50)
        self.anna.session.lost()
        self.known()
        self.assertEqual(self.work, [])
        self.assertNothingLeft()

    def test_another_one_takes_over(self) -> None:
        self.known()
        self.upload(50)
        self.house.pool.answer("fel")
        self.known("another digest")
        self.accept()
        self.assertEqual(self.work, [1, 0])
        self.house.pool.answer("rätt", at=1)
        self.house.pool.answer("rätt", at=1)
        self.house.pool.answer("fel")
        self.house.pool.answer("rätt")
        self.assertEqual(self.text(), "rätt rätt rätt")


class LookingUpTests(Case):
    """Whether an upload is new is asked once, and nothing waits for the answer."""

    def setUp(self) -> None:
        super().setUp()
        self.gate: Deferred[None] = Deferred()
        look = self.house.store.look
        self.patch(self.house.store, "look", lambda *a: self.gate.addCallback(lambda _: look(*a)))

    def test_the_upload_goes_on(self) -> None:
        self.upload(50)
        self.anna.sound(SECOND)
        self.assertEqual(self.work, [])
        self.gate.callback(None)
        self.assertEqual(self.work, [0, 1])

    def test_answered_after_the_end(self) -> None:
        self.upload(30)
        self.accept()
        self.assertEqual(self.work, [0, 1])
        self.gate.callback(None)
        self.house.pool.answer("ett")
        self.house.pool.answer("två")
        self.assertEqual(self.house.spool.names(), [".text"])

    def test_answered_after_it_broke_off(self) -> None:
        self.upload(30)
        self.anna.session.lost()
        self.house.desk.wake = lambda: self.fail("there is nothing to transcribe")
        self.gate.callback(None)
        self.assertEqual(self.work, [])
        self.assertEqual(self.house.spool.names(), [])

    def test_a_broken_store(self) -> None:
        self.gate.errback(RuntimeError("the database is locked"))
        self.upload(50)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.anna.sound(SECOND)
        self.assertEqual(self.work, [])
        self.accept()
        self.assertEqual(self.work, [0, 1])


class NeighbourTests(Case):
    """In one batch with others."""

    model = msgspec.structs.replace(MODEL, batch=40.0)

    def test_its_audio_is_taken_away(self) -> None:
        self.house.pool.workers = 0
        self.upload(30)
        bjorn = self.house.party("bjorn")
        bjorn.submit("b1")
        bjorn.submit("b2")
        self.house.pool.workers = 1
        self.house.pool.whenFree()
        self.assertEqual(len(self.house.pool.work[0].pieces), 3)
        self.anna.session.lost()
        self.house.pool.fail("the recording cannot be read from the spool")
        for word in ("ett", "två"):
            self.house.pool.fail()
            self.house.pool.fail()
            self.house.pool.answer(word)
        self.assertEqual(bjorn.ask(type="fetch", id="b1")["text"], "ett")
        self.assertEqual(bjorn.ask(type="fetch", id="b2")["text"], "två")
        self.assertEqual(self.house.spool.names(), [".text", ".text"])
        self.assertEqual(self.work, [])


class DrainTests(Case):
    """The daemon stops."""

    def test_accepted_meanwhile(self) -> None:
        self.upload(30)
        drained = self.house.dispatcher.drain()
        self.house.pool.answer("ett")
        self.successResultOf(drained)
        self.accept()
        self.assertEqual((self.work, self.status()[0]), ([], "queued"))
        self.assertEqual(self.stored_lines(), 1)
        self.restart()
        self.assertEqual(self.work, [1])

    def test_broken_off_then(self) -> None:
        self.upload(30)
        drained = self.house.dispatcher.drain()
        self.anna.session.lost()
        self.house.pool.fail("the worker is being stopped")
        self.successResultOf(drained)
        self.assertNothingLeft()
