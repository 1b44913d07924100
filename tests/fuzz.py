"""Drives a whole core, and many parties on it, with whatever hypothesis draws.

After each step it is checked that everybody got what docs/protocol.rst promises, and nobody
anything else; at the end, that nothing stays behind.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from tests.fakes import FakePool, House
from tests.fuzzline import Line, count, must
from tests.fuzzmessages import (
    LINES,
    PARTIES,
    REF,
    Advance,
    Audio,
    Collect,
    Lose,
    Recording,
    Step,
    Text,
    Work,
)
from transcribed.recognition import Word, WordsResult
from transcribed.transcript import FINISHED, UNFINISHED

YEARS = 3 * 366 * 86400.0


class Crowd:
    """Connections on one house.

    :ivar messages: how many were sent.
    :ivar sides: who was ever named as the receiver, by owner and id.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.rmtree(directory, ignore_errors=True)
        self.house = House(directory, max_queue=8, pool=FakePool(2))
        self.messages = self.accepted = self.delivered = 0
        self.sides: dict[tuple[str, str], set[str]] = _Sides()
        self.others: list[str] = []
        self._gone: list[weakref.ref[Any]] = []
        self.lines = [self.call(PARTIES[i % len(PARTIES)]) for i in range(LINES)]

    def count(self) -> int:
        """One more message."""
        self.messages += 1
        return self.messages

    def call(self, party: str | None) -> Line:
        """Somebody new."""
        line = Line(self)
        self._gone.append(weakref.ref(line.session))
        if party is not None:
            line.text(msgspec.json.encode({"type": "hello", "party": party}), True)
        return line

    def do(self, step: Step) -> None:
        """Do it, and check all that there is to check."""
        match step:
            case Text():
                self.lines[step.line].text(step.payload, step.good)
            case Audio():
                self.lines[step.line].audio(step.size, step.begins)
            case Recording():
                line = self.lines[step.line]
                message = {"id": step.id, "receiver": step.receiver, "ref": REF}
                line.text(msgspec.json.encode({"type": "submit", **message}), True)
                line.audio(step.size, True)
                line.text(msgspec.json.encode({"type": "end", **message}), True)
            case Collect():
                line = self.lines[step.line]
                message = {"id": step.id, "owner": step.owner, "ref": REF}
                line.text(msgspec.json.encode({"type": "fetch", **message}), True)
                line.text(msgspec.json.encode({"type": "ack", **message}), True)
            case Lose():
                self.lose(step.line)
                self.lines[step.line] = self.call(step.party)
            case Advance():
                self.house.clock.advance(step.seconds)
                for line in self.lines:
                    if line.party is None:
                        self.late(line)
                if step.purge:
                    self.house.purge()
            case Work():
                self.work(step.at, step.words)
        for line in self.lines:
            line.overheard()

    def late(self, line: Line) -> None:
        """Who has said no hello in time is told so."""
        for answer in line.direct():
            line.one([answer], None, {"unauthenticated"})
            must(line.closed, "told, and not closed")

    def lose(self, number: int) -> None:
        """A connection breaks."""
        line = self.lines[number]
        line.lost = True
        line.session.lost()
        # It must not be kept alive by who only tests it.
        del line.session

    def work(self, at: int, words: int | None) -> None:
        """A worker hears who is speaking in each window: the owner, as long as all is well."""
        pool = self.house.pool
        if not pool.work:
            return
        batch = pool.work.pop(at % len(pool.work))
        if words is None:
            pool.work.insert(0, batch)
            pool.fail()
            return
        results = []
        for piece in batch.pieces:
            try:
                with open(piece.audio.path, "rb") as audio:
                    who = (audio.read(1) or b"\0")[0]
            except FileNotFoundError:
                who = 0
            word = [*PARTIES, *self.others][who - 1] if who else "nobody"
            results.append(WordsResult([Word(word, i, i + 1, 0.5) for i in range(words)]))
        batch.results.callback(results)  # type: ignore[arg-type]
        pool.whenFree()

    def leave(self) -> None:
        """All leave; then nothing is left but what was accepted, and when that has expired, no
        trace of that either."""
        house, desk = self.house, self.house.desk
        while house.pool.work:
            self.work(0, 1)
        for line in self.lines:
            line.overheard()
        for line in self.lines:
            # Only for what is still coming in.
            must(not line.waiting or house.desk.open_uploads, "never answered", line.waiting)
        for number in range(LINES):
            self.lose(number)
        self.lines.clear()
        must(self.leftovers() == {}, self.leftovers())
        live: Any = house.store.live()
        for path in self.directory.iterdir():
            uses = FINISHED if path.suffix == ".text" else UNFINISHED
            must(live.result.get(path.stem) in uses, "a file of nothing", path.name)
        house.clock.advance(YEARS)
        house.purge()
        house.clock.advance(YEARS)
        house.purge()
        must(not list(self.directory.iterdir()), "files are left")
        connection: Any = house.store.pool.connection
        (rows,) = connection.execute("SELECT count(*) FROM transcripts").fetchone()
        must(rows == 0, rows, "rows are left")
        must(desk._left == {} and house.spool.disk.used == 0, desk._left, house.spool.disk.used)
        must(not house.clock.getDelayedCalls(), house.clock.getDelayedCalls())

    def voice(self, party: str | None) -> bytes:
        """A byte of what a party says."""
        names = [*PARTIES, *self.others]
        if party is not None and party not in names:
            self.others.append(party)
            names.append(party)
        return bytes([names.index(party) + 1 if party is not None else 0])

    def leftovers(self) -> dict[str, int]:
        """How much there is in what must be empty when all have left and nothing is in work."""
        house, desk = self.house, self.house.desk
        sizes = {
            "uploads": len(desk._uploads._uploads),
            "watchers": len(desk._watchers),
            "waiting": len(desk._waiting),
            "delivering": len(desk._delivering),
            "jobs": len(house.scheduler._jobs),
            "owners": len(house.scheduler._owners),
            "due": len(house.scheduler._due),
            "in work": len(house.dispatcher._steps),
            "retries": len(house.dispatcher._retries),
            "locks": len(house.spool._locks),
            "undeleted": len(house.spool._undeleted),
            "parties": len(house.doorkeeper.parties._inside),
        }
        return {name: size for name, size in sizes.items() if size}

    def gone(self) -> Callable[[], int]:
        """Tells how many sessions are still in memory; does not keep the crowd there."""
        return count(self._gone)


class _Sides(dict[tuple[str, str], set[str]]):
    def __missing__(self, key: tuple[str, str]) -> set[str]:
        return self.setdefault(key, set())


def play(directory: Path, steps: list[Step]) -> Crowd:
    """A house, all that happens to it, and its end; raises :exc:`Broken`, or what it raises."""
    crowd = Crowd(directory)
    try:
        for step in steps:
            crowd.do(step)
        crowd.leave()
    finally:
        crowd.house.store.close()
    return crowd
