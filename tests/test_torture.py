"""The books of the torture: each count can become other than 0. And the quick run, end to end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.daemonprocess import ROOT
from torture.__main__ import table
from torture.evidence import leftovers, rows, traces
from torture.faults import FAULTS
from torture.ledger import Counts, Ledger, Recording
from torture.runs import Row

WORDS = [{"word": "hej", "start": 0.1, "end": 0.3, "confidence": 0.9}]
TRANSCRIPT = {"type": "transcript", "text": "hej", "words": WORDS}
UNKNOWN = {"type": "error", "code": "unknown-id", "reason": "there is no such transcript"}
FAILED = {"type": "error", "code": "failed", "reason": "the worker died"}
GONE = {"type": "error", "code": "gone", "reason": "it is deleted"}


def given(owner: bool, receiver: bool) -> dict[str, Any]:
    both = owner and receiver
    return {"type": "acked", "given": {"owner": owner, "receiver": receiver}, "purged": both}


class LedgerTests(SynchronousTestCase):
    """One recording from anna to bjorn, unless said otherwise."""

    def setUp(self) -> None:
        self.ledger = Ledger()
        self.m1 = self.offer()

    def offer(self, id: str = "m1", **more: Any) -> Recording:
        return self.ledger.offer(Recording("anna", id, "bjorn", "hej", ended=True, **more))

    def accept(self, recording: Recording, state: str = "queued", **more: str) -> None:
        answer = {"owner": "anna", "id": recording.id, "receiver": "bjorn", "state": state}
        self.ledger.accepted(recording, answer | more)

    def deliver(self) -> None:
        for party in ("anna", "bjorn"):
            self.ledger.delivered(self.m1, party, TRANSCRIPT)

    def ack(self, party: str, *sides: bool) -> None:
        self.m1.sides[party].acking = True
        self.ledger.acked(self.m1, party, given(*sides))

    def check(self, **counts: int) -> None:
        """These are the counts; all others are 0, and what is bad has a note."""
        found = self.ledger.counts()
        self.assertEqual(found, Counts(**counts))
        bad = any(count for name, count in counts.items() if name not in ("accepted", "delivered"))
        self.assertEqual(found.clean, not bad and found.accepted > 0)
        self.assertEqual(bool(self.ledger.notes), bad)

    # All is well.

    def test_nothing(self) -> None:
        self.check()
        self.assertFalse(self.ledger.counts().clean, "nothing was checked")

    def test_well(self) -> None:
        self.accept(self.m1)
        self.deliver()
        self.ack("anna", True, False)
        self.ledger.gone(self.m1, "anna")
        self.ack("bjorn", True, True)
        self.ledger.standing(self.m1, GONE)
        self.ledger.rows([("anna", "m1", "purged")])
        self.ledger.leftovers([])
        self.ledger.stranger("fetch", UNKNOWN, UNKNOWN)
        self.check(accepted=1, delivered=1)

    def test_neverAccepted(self) -> None:
        self.ledger.unknown(self.m1, "anna")
        self.check()

    def test_poisoned(self) -> None:
        poisoned = self.offer("m2", poisoned=True)
        self.accept(poisoned)
        for party in ("anna", "bjorn"):
            self.ledger.failed(poisoned, party, FAILED)
        self.check(accepted=1)

    def test_cancelledAndExpired(self) -> None:
        cancelled, short = self.offer("m2", cancelling=True), self.offer("m3", short=True)
        for recording in (cancelled, short):
            self.accept(recording)
            self.ledger.gone(recording, "bjorn")
        self.ledger.unknown(short, "anna")
        self.ledger.expired(short, GONE)
        self.ledger.expired(short, UNKNOWN)
        self.ledger.standing(cancelled, GONE)
        self.check(accepted=2)

    def test_ackedWithoutAnAnswer(self) -> None:
        """Then the text may be gone all the same."""
        self.accept(self.m1)
        self.deliver()
        for side in self.m1.sides.values():
            side.acking = True
        self.ledger.gone(self.m1, "anna")
        self.check(accepted=1, delivered=1)

    # Lost

    def test_lost(self) -> None:
        self.accept(self.m1)
        self.ledger.delivered(self.m1, "bjorn", TRANSCRIPT)
        self.check(accepted=1, lost=1)

    def test_lostAsUnknown(self) -> None:
        self.accept(self.m1)
        self.deliver()
        self.ledger.unknown(self.m1, "bjorn")
        self.check(accepted=1, lost=1)

    def test_lostAsFailed(self) -> None:
        self.accept(self.m1)
        for party in ("anna", "bjorn"):
            self.ledger.failed(self.m1, party, FAILED)
        self.check(accepted=1, lost=1)

    def test_lostAsAnotherText(self) -> None:
        self.accept(self.m1)
        for party in ("anna", "bjorn"):
            self.ledger.delivered(self.m1, party, TRANSCRIPT | {"text": "nej"})
        self.check(accepted=1, lost=1)

    def test_lostWithoutAReason(self) -> None:
        poisoned = self.offer("m2", poisoned=True)
        self.accept(poisoned)
        self.ledger.failed(poisoned, "anna", FAILED)
        self.ledger.failed(poisoned, "bjorn", FAILED | {"reason": ""})
        self.check(accepted=1, lost=1)

    # Strangers

    def test_strangerHearsOtherWords(self) -> None:
        self.ledger.stranger("ack", UNKNOWN | {"reason": "it is not yours"}, UNKNOWN)
        self.check(strangers=1)

    def test_strangerHearsAnything(self) -> None:
        for answer in (TRANSCRIPT, GONE, {"type": "status", "state": "ready"}):
            self.ledger.stranger("fetch", answer, answer)
        self.check(strangers=3)

    def test_strangerIsListedIt(self) -> None:
        listed = {"transcripts": [{"owner": "anna", "id": "m1", "state": "ready"}]}
        self.assertEqual(self.ledger.listed("mallory", listed), [])
        self.check(strangers=1)
        self.assertEqual(self.ledger.listed("bjorn", listed), [self.m1])

    # Early

    def test_goneBeforeAnAck(self) -> None:
        self.accept(self.m1)
        self.deliver()
        self.ack("anna", True, False)
        self.ledger.gone(self.m1, "bjorn")
        self.ledger.gone(self.m1, "bjorn")
        self.check(accepted=1, delivered=1, early=1)

    def test_purgedAtTheFirstAck(self) -> None:
        self.accept(self.m1)
        self.deliver()
        self.m1.sides["anna"].acking = True
        self.ledger.acked(self.m1, "anna", given(True, False) | {"purged": True})
        self.check(accepted=1, delivered=1, early=1)

    # Left

    def test_leftOnDisk(self) -> None:
        self.ledger.leftovers(["x.audio", "x.text"])
        self.check(left=2)

    def test_leftAfterBothAcks(self) -> None:
        self.accept(self.m1)
        self.deliver()
        self.ack("anna", True, False)
        self.m1.sides["bjorn"].acking = True
        self.ledger.acked(self.m1, "bjorn", given(True, True) | {"purged": False})
        self.check(accepted=1, delivered=1, left=1)

    def test_leftAfterItsTime(self) -> None:
        self.ledger.expired(self.m1, {"type": "status", "state": "ready"})
        self.check(left=1)

    def test_leftAfterItWasCancelled(self) -> None:
        self.m1.cancelling = True
        self.accept(self.m1)
        self.ledger.standing(self.m1, {"type": "status", "state": "ready"})
        self.check(accepted=1, left=1)

    # Unfinished

    def test_unfinished(self) -> None:
        self.accept(self.m1)
        self.ledger.standing(self.m1, {"type": "status", "state": "transcribing"})
        self.ledger.rows([("anna", "m1", "transcribing")])
        self.check(accepted=1, unfinished=1)

    def test_unfinishedRow(self) -> None:
        self.accept(self.m1)
        self.deliver()
        self.ledger.rows([("anna", "m1", "purged"), ("anna", "m2", "ready")])
        self.check(accepted=1, delivered=1, unfinished=1)

    # Other

    def test_other(self) -> None:
        never_ended = {"transcripts": [{"owner": "anna", "id": "m2", "state": "queued"}]}
        self.offer("m2").ended = False
        self.accept(self.m1, receiver="mallory")
        self.accept(self.m1, state="ready")
        self.deliver()
        self.ledger.delivered(self.m1, "anna", TRANSCRIPT | {"words": []})
        self.ack("anna", False, False)
        self.ack("anna", True, True)
        self.ledger.refused(self.m1, "bjorn", FAILED)
        self.ledger.listed("bjorn", never_ended)
        self.ledger.delivered(self.offer("m3", poisoned=True), "anna", TRANSCRIPT)
        self.ledger.broken("the daemon has ended by itself")
        counts = self.ledger.counts()
        self.assertEqual((counts.broken, counts.early), (9, 1))
        self.assertFalse(counts.clean)


class EvidenceTests(SynchronousTestCase):
    """What is found on the disk."""

    def setUp(self) -> None:
        self.state = Path(self.mktemp())
        self.spool = self.state / "spool"
        self.spool.mkdir(parents=True)
        (self.state / "models").mkdir()

    def test_traces(self) -> None:
        recording = Recording("anna", "m1", "bjorn", "hej", b"mark", words=WORDS)
        self.assertEqual(traces(self.spool, recording), [])
        (self.spool / "other.audio").write_bytes(b"sound and another")
        (self.spool / "other.text").write_text(json.dumps({"text": "hej", "words": []}))
        (self.spool / "half.text").write_text('{"te')
        self.assertEqual(traces(self.spool, recording), [])
        (self.spool / "a.audio").write_bytes(b"sound and mark")
        (self.spool / "b.text").write_text(json.dumps({"text": "hej", "words": WORDS}))
        found = traces(self.spool, recording)
        self.assertEqual([line.split()[0] for line in found], ["a.audio", "b.text"])

    def test_leftovers(self) -> None:
        (self.state / "models" / "vocabulary").write_text("hej bjorn")
        (self.state / "database").write_text("hej")
        self.assertEqual(leftovers(self.state, [b"hej bjorn", b"sound"]), [])
        (self.spool / "x.windows").touch()
        (self.state / "database").write_text("hej bjorn")
        found = leftovers(self.state, [b"hej bjorn", b"sound"])
        self.assertEqual(len(found), 2, found)
        self.assertIn("x.windows", found[0])
        self.assertIn("database", found[1])

    def test_rows(self) -> None:
        path = self.state / "transcripts.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE transcripts (owner, id, state)")
            database.execute("INSERT INTO transcripts VALUES ('anna', 'm1', 'ready')")
            database.commit()
        self.assertEqual(rows(self.state), [("anna", "m1", "ready")])
        path.write_bytes(path.read_bytes()[:5000])
        self.assertRaises(sqlite3.DatabaseError, rows, self.state)


class TableTests(SynchronousTestCase):
    """What is printed, and what counts as bad."""

    def test_aRowAFault(self) -> None:
        lines = table([Row("disk full", Counts(12, 11, 1), 20, 3, 61.4, [])]).splitlines()
        self.assertEqual(len({len(line) for line in lines}), 1)
        self.assertEqual(lines[1].split()[2:], ["12", "11", "1", *"00000", "20", "3", "61"])

    def test_eachBadCountIsBad(self) -> None:
        good = Counts(accepted=5, delivered=4)
        self.assertTrue(good.clean)
        for field in fields(Counts)[2:]:
            self.assertFalse(replace(good, **{field.name: 1}).clean, field.name)


class QuickTests(TestCase):
    """End to end: real daemons under each fault of the quick run."""

    timeout = 480

    def kill(self, group: int) -> None:
        """End all processes of a group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)

    async def test_everyPromiseIsKept(self) -> None:
        expected = [fault.name for fault in FAULTS if fault.in_quick and fault.missing() is None]
        file = Path(self.mktemp()).absolute()
        said = Path(self.mktemp())
        with said.open("wb") as output:
            torture = subprocess.Popen(
                [sys.executable, "-m", "torture", "--quick", "--json", str(file)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # Its daemons, too: where it takes too long, they are not to run on beside other tests.
        self.addCleanup(self.kill, torture.pid)
        code = await deferToThread(torture.wait)
        self.assertEqual(code, 0, said.read_text(errors="replace"))
        found = json.loads(file.read_text())
        self.assertEqual([row["fault"] for row in found], expected)
        for row in found:
            counts = Counts(**row["counts"])
            self.assertTrue(counts.clean, row)
            self.assertGreater(row["injected"], 0, row)
            self.assertGreater(counts.delivered, 0, row)
