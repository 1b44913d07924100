"""From the queue to the text: retries, what cannot be stored, the drain, and the next start."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import MODEL, FakePool, House
from transcribed.dispatcher import RETRY_STORING
from transcribed.recognition import StoredWindow, Word, WordsResult

SECOND = b"\1\0" * 16000
FULL = OSError(errno.ENOSPC, "no space left on device")


class Case(SynchronousTestCase):
    """A house, and Anna in it."""

    workers = 1

    def setUp(self) -> None:
        self.house = House(Path(self.mktemp()), pool=FakePool(self.workers))
        self.anna = self.house.party("anna")

    def text(self, id: str = "m1") -> str:
        answer = self.anna.ask(type="fetch", id=id, wait=False)
        self.assertEqual(answer["type"], "transcript", answer)
        return str(answer["text"])

    def state(self, id: str = "m1") -> str:
        return str(self.anna.ask(type="status", id=id)["state"])

    def restart(self) -> None:
        """As after a kill: what was in work is forgotten, the disk is as it is."""
        self.house.pool.work.clear()
        self.house.open()
        self.anna = self.house.party("anna")


class RetryTests(Case):
    """A window's three tries."""

    def test_a_window_that_fails_twice(self) -> None:
        self.anna.submit("m1")
        self.house.pool.fail()
        self.house.pool.fail()
        self.house.pool.answer("hej")
        self.assertEqual(self.text(), "hej")

    def test_the_tries_are_each_windows_own(self) -> None:
        self.anna.submit("m1", SECOND * 60)
        for word in ("ett", "två", "tre"):
            self.house.pool.fail()
            self.house.pool.fail()
            self.house.pool.answer(word)
        self.assertEqual(self.text(), "ett två tre")

    def test_a_recording_that_fails_leaves_others_alone(self) -> None:
        self.anna.submit("m1", SECOND * 60)
        self.anna.submit("m2")
        self.house.pool.fail("a poisoned window")
        self.house.pool.answer("hej")
        for _ in range(2):
            self.house.pool.fail("a poisoned window")
        self.assertEqual(self.state("m1"), "failed")
        self.assertEqual(self.text("m2"), "hej")
        self.assertEqual(self.house.pool.work, [])
        self.assertEqual(len(self.house.scheduler), 0)

    def test_an_answer_nobody_waits_for(self) -> None:
        self.anna.submit("m1")
        self.anna.ask(type="cancel", id="m1")
        self.house.pool.fail()
        self.assertEqual(self.house.pool.work, [])
        self.assertEqual(self.house.spool.names(), [])


class TwoWorkersTests(Case):
    """More than one window in work."""

    workers = 2

    def test_one_recording_on_all(self) -> None:
        self.anna.submit("m1", SECOND * 60)
        self.assertEqual(len(self.house.pool.work), 2)
        self.house.pool.answer("två", at=1)
        self.house.pool.answer("ett", at=0)
        self.house.pool.answer("tre", at=0)
        self.assertEqual(self.text(), "ett två tre")

    def test_failing_while_another_window_is_in_work(self) -> None:
        self.anna.submit("m1", SECOND * 60)
        for _ in range(3):
            self.house.pool.fail(at=0)
            if len(self.house.pool.work) == 2:
                # The retry went to the end of the list.
                self.house.pool.work.reverse()
        self.assertEqual(self.state(), "failed")
        while self.house.pool.work:
            self.house.pool.answer("hej")
        self.assertEqual(self.state(), "failed")
        self.assertEqual(self.house.spool.names(), [])


class BatchTests(Case):
    """Short windows that wait together go to a worker together."""

    def setUp(self) -> None:
        super().setUp()
        self.house.pool.model = msgspec.structs.replace(MODEL, batch=30.0)
        self.bjorn = self.house.party("bjorn")

    def wait(self) -> None:
        """Three short recordings wait for the one worker."""
        self.house.pool.workers = 0
        for id in ("m1", "m2"):
            self.anna.submit(id)
        self.bjorn.submit("b1")
        self.house.pool.workers = 1
        self.house.pool.whenFree()

    def keys(self) -> list[str]:
        """The recordings in work, by their ids."""
        (batch,) = self.house.pool.work
        ids = {t.key: t.id for t in self.successResultOf(self.house.store.unfinished())}
        return [ids[Path(piece.audio.path).stem] for piece in batch.pieces]

    def theirs(self) -> list[str]:
        b1 = self.bjorn.ask(type="fetch", id="b1", wait=False)
        return [self.text("m1"), self.text("m2"), b1["text"]]

    def test_each_has_its_own_text(self) -> None:
        self.wait()
        self.assertEqual(self.keys(), ["m1", "b1", "m2"])
        self.assertEqual([self.state(id) for id in ("m1", "m2")], ["transcribing"] * 2)
        self.house.pool.answer_all(["ett"], ["tre"], ["två"])
        self.assertEqual(self.theirs(), ["ett", "två", "tre"])
        self.assertEqual(self.house.spool.names(), [".text"] * 3)

    def test_a_poisoned_neighbour(self) -> None:
        """It costs the others no try: even two failures more do not end them."""
        self.wait()
        self.house.pool.fail()
        tries: Counter[str] = Counter()
        while self.house.pool.work:
            (id,) = self.keys()
            tries[id] += 1
            if id == "b1" or tries[id] < 3:
                self.house.pool.fail("poison")
            else:
                self.house.pool.answer({"m1": "ett", "m2": "två"}[id])
        self.assertEqual(tries, {"m1": 3, "m2": 3, "b1": 3})
        self.assertEqual((self.text("m1"), self.text("m2")), ("ett", "två"))
        answer = self.bjorn.ask(type="fetch", id="b1")
        self.assertEqual((answer["code"], answer["reason"]), ("failed", "poison"))

    def test_one_of_them_is_cancelled(self) -> None:
        self.wait()
        self.anna.ask(type="cancel", id="m1")
        self.house.pool.answer_all(["ett"], ["tre"], ["två"])
        self.assertEqual(self.text("m2"), "två")
        self.assertEqual(self.bjorn.ask(type="fetch", id="b1")["text"], "tre")
        self.assertEqual(self.house.spool.names(), [".text"] * 2)

    def test_one_of_them_cannot_be_stored(self) -> None:
        """The others' texts do not wait for it."""
        self.wait()
        keep = self.house.spool.keep_text
        (broken,) = (piece for piece in self.house.pool.work[0].pieces[1:2])

        def keep_text(key: str, *rest: Any) -> Deferred[bool]:
            return fail(FULL) if key == Path(broken.audio.path).stem else keep(key, *rest)

        patch = self.patch(self.house.spool, "keep_text", keep_text)
        self.house.pool.answer_all(["ett"], ["tre"], ["två"])
        self.assertEqual((self.text("m1"), self.text("m2")), ("ett", "två"))
        self.assertEqual(self.bjorn.ask(type="status", id="b1")["state"], "transcribing")
        patch.restore()
        self.house.clock.advance(RETRY_STORING)
        self.assertEqual(self.bjorn.ask(type="fetch", id="b1")["text"], "tre")

    def test_drained(self) -> None:
        self.wait()
        drained = self.house.dispatcher.drain()
        self.assertNoResult(drained)
        self.house.pool.answer_all(["ett"], ["tre"], ["två"])
        self.successResultOf(drained)
        self.assertEqual(self.theirs(), ["ett", "två", "tre"])


class StoringTests(Case):
    """What cannot be stored is stored later."""

    def later(self) -> None:
        self.house.clock.advance(RETRY_STORING)

    def test_a_text(self) -> None:
        self.anna.submit("m1")
        self.house.spool.broken = FULL
        self.house.pool.answer("hej")
        self.assertEqual(self.state(), "transcribing")
        self.later()
        self.assertEqual(self.state(), "transcribing")
        self.house.spool.broken = None
        self.later()
        self.assertEqual(self.text(), "hej")
        self.assertEqual(self.house.spool.names(), [".text"])

    def test_that_it_is_ready(self) -> None:
        self.anna.submit("m1")
        self.house.store.pool.broken = RuntimeError("the database is locked")
        self.house.pool.answer("hej")
        self.house.store.pool.broken = None
        self.assertEqual(self.state(), "transcribing")
        self.assertIn(".audio", self.house.spool.names())
        self.later()
        self.assertEqual(self.text(), "hej")

    def test_that_it_has_failed(self) -> None:
        self.anna.submit("m1")
        self.house.pool.fail()
        self.house.pool.fail()
        self.house.store.pool.broken = RuntimeError("the database is locked")
        self.house.pool.fail("poison")
        self.house.store.pool.broken = None
        self.later()
        self.assertEqual(self.state(), "failed")

    def test_what_was_stored_though_it_failed_is_told(self) -> None:
        """The commit is there, its answer is an error: whoever waits is told by the next try."""
        for id, outcome in (("m1", "ready"), ("m2", "failed")):
            self.anna.submit(id)
            self.anna.say(type="fetch", id=id)
            watcher = self.house.party("anna")
            watcher.ask(type="subscribe")
            if outcome == "failed":
                self.house.pool.fail()
                self.house.pool.fail()
            run = self.house.store.pool.runInteraction

            def commit_and_fail(work: Callable[[Any], Any], run: Any = run) -> Deferred[Any]:
                failed: Deferred[Any] = run(work)
                return failed.addCallback(lambda _: fail(RuntimeError("disk I/O error")))

            self.house.store.pool.runInteraction = commit_and_fail  # type: ignore[method-assign]
            if outcome == "failed":
                self.house.pool.fail()
            else:
                self.house.pool.answer("hej")
            self.house.store.pool.runInteraction = run  # type: ignore[method-assign]
            self.assertEqual(self.state(id), outcome)
            self.assertEqual((self.anna.sent, watcher.sent), ([], []))
            self.later()
            self.assertEqual([event["state"] for event in watcher.sent], [outcome])
            answer = self.anna.heard()
            heard = answer.get("text", answer.get("code"))
            self.assertEqual(heard, "hej" if outcome == "ready" else "failed")
            watcher.session.lost()

    def test_a_window(self) -> None:
        self.anna.submit("m1", SECOND * 40)
        self.house.spool.broken = FULL
        self.house.pool.answer("ett")
        self.house.spool.broken = None
        self.house.pool.answer("två")
        self.assertEqual(self.text(), "ett två")

    def test_that_it_is_in_work(self) -> None:
        self.anna.submit("m0")
        self.anna.submit("m1")
        self.house.store.pool.broken = RuntimeError("the database is locked")
        self.house.pool.answer("hej")
        self.house.store.pool.broken = None
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.house.pool.answer("igen")
        self.assertEqual(self.text("m1"), "igen")
        self.later()
        self.assertEqual(self.text("m0"), "hej")

    def test_a_cancel_in_between(self) -> None:
        self.anna.submit("m1")
        self.house.spool.broken = FULL
        self.house.pool.answer("hej")
        self.house.spool.broken = None
        self.anna.ask(type="cancel", id="m1")
        self.later()
        self.assertEqual(self.house.spool.names(), [])


class DrainTests(Case):
    """Nothing more is dealt out; what is in work is finished."""

    def test_nothing_in_work(self) -> None:
        self.successResultOf(self.house.dispatcher.drain())

    def test_one_in_work_and_one_queued(self) -> None:
        self.anna.submit("m1")
        self.anna.submit("m2")
        drained: Deferred[None] = self.house.dispatcher.drain()
        self.assertNoResult(drained)
        self.house.pool.answer("hej")
        self.successResultOf(drained)
        self.assertEqual(self.house.pool.work, [])
        self.assertEqual(self.text("m1"), "hej")
        self.assertEqual(self.state("m2"), "queued")

    def test_what_waits_to_be_stored_again(self) -> None:
        self.anna.submit("m1")
        self.house.spool.broken = FULL
        self.house.pool.answer("hej")
        self.successResultOf(self.house.dispatcher.drain())
        self.assertEqual(self.house.clock.getDelayedCalls(), [])


class ResumeTests(Case):
    """The next start goes on where the last one was."""

    def test_queued_and_in_work(self) -> None:
        self.anna.submit("m1")
        self.house.clock.advance(1)
        self.anna.submit("m2")
        self.restart()
        self.assertEqual(self.successResultOf(self.house.resumed), (2, 0))
        for word in ("ett", "två"):
            self.house.pool.answer(word)
        self.assertEqual((self.text("m1"), self.text("m2")), ("ett", "två"))

    def test_windows_are_not_repeated(self) -> None:
        self.anna.submit("m1", SECOND * 60)
        self.house.pool.answer("ett")
        self.house.pool.answer("två")
        self.restart()
        self.assertEqual(self.house.pool.work[0].window.position, 2)
        self.assertEqual(self.anna.ask(type="status", id="m1")["progress"], 0.6667)
        self.house.pool.answer("tre")
        self.assertEqual(self.text(), "ett två tre")

    def test_all_windows_are_there(self) -> None:
        self.anna.submit("m1", SECOND * 40)
        self.house.pool.answer("ett")
        (key,) = (p.stem for p in self.house.directory.glob("*.windows"))
        result = WordsResult([Word("två", 25, 26, 0.5)])
        self.house.spool.keep_window(key, StoredWindow(MODEL.mark, 1, result))
        self.restart()
        self.assertEqual(self.house.pool.work, [])
        self.assertEqual(self.text(), "ett två")

    def test_with_another_model(self) -> None:
        self.anna.submit("m1", SECOND * 40)
        self.house.pool.answer("ett")
        self.house.pool.model = msgspec.structs.replace(MODEL, digest="digest-2")
        self.restart()
        self.assertEqual(self.house.pool.work[0].window.position, 0)

    def test_the_text_is_there_but_not_said_so(self) -> None:
        self.anna.submit("m1")
        self.house.store.pool.broken = RuntimeError("killed right here")
        self.house.pool.answer("hej")
        self.house.store.pool.broken = None
        for call in self.house.clock.getDelayedCalls():
            call.cancel()
        self.assertEqual(self.house.spool.names(), [".audio", ".text", ".windows"])
        self.restart()
        self.assertEqual(self.house.spool.names(), [".audio", ".windows"])
        self.house.pool.answer("hej")
        self.assertEqual(self.text(), "hej")

    def test_audio_that_is_lost(self) -> None:
        self.anna.submit("m1")
        for path in self.house.directory.glob("*.audio"):
            path.unlink()
        self.restart()
        answer = self.anna.ask(type="fetch", id="m1")
        self.assertEqual((answer["code"], answer["reason"]), ("failed", "the audio is lost"))

    def test_audio_that_is_lost_later(self) -> None:
        self.anna.submit("m1")
        for path in self.house.directory.glob("*.audio"):
            path.unlink()
        self.house.pool.answer("hej")
        self.assertEqual(self.anna.ask(type="fetch", id="m1")["code"], "failed")

    def test_before_the_model_is_known(self) -> None:
        self.house.pool.model = None
        self.anna.submit("m1")
        self.assertEqual(self.house.pool.work, [])
        self.assertEqual(self.state(), "queued")
        self.house.pool.model = MODEL
        self.house.pool.whenFree()
        self.house.pool.answer("hej")
        self.assertEqual(self.text(), "hej")
