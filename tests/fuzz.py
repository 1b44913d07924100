"""Drives a whole core, and many parties on it, with whatever hypothesis draws.

After each step it is checked that everybody got what docs/protocol.rst promises, and nobody
anything else; at the end, that nothing stays behind.
"""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import msgspec

from tests.fakes import FakePeer, FakePool, House
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
from transcribed import wire
from transcribed.recognition import Word, WordsResult
from transcribed.session import Session

CODES = {
    "bad-message",
    "unauthenticated",
    "unknown-id",
    "id-taken",
    "gone",
    "bad-audio",
    "too-long",
    "busy",
    "not-fetched",
    "failed",
    "unsupported",
}
"""The codes of docs/protocol.rst but for `internal`, which nothing that is sent may lead to."""
ANSWERS: dict[type, set[str]] = {
    wire.Hello: {"welcome"},
    wire.End: {"accepted"},
    wire.Fetch: {"transcript", "status"},
    wire.Ack: {"acked"},
    wire.AskStatus: {"status"},
    wire.Cancel: {"cancelled"},
    wire.AskList: {"listing"},
    wire.Subscribe: {"subscribed"},
}
MAX_BAD = 10
YEARS = 3 * 366 * 86400.0


class Broken(AssertionError):
    """A promise was not kept."""


def must(condition: object, *what: object) -> None:
    """Raises :exc:`Broken` where it is not so."""
    if not condition:
        raise Broken(*what)


class Line(FakePeer):
    """One connection, and what the protocol says about where it stands.

    :ivar party: who is on it, once welcomed.
    :ivar upload: the id and the ref of the upload that is open.
    :ivar swallowing: the ids of which the rest is swallowed; None among them stands for any.
    :ivar bad: how many bad messages came in a row.
    :ivar waiting: the refs of fetches that were not answered yet.
    """

    def __init__(self, crowd: Crowd) -> None:
        super().__init__()
        self.crowd = crowd
        self.party: str | None = None
        self.upload: tuple[str, str | None] | None = None
        self.swallowing: set[str | None] | None = None
        self.bad = 0
        self.waiting: set[str] = set()
        self.lost = False
        self.session = Session(crowd.house.host, self)

    def send(self, payload: bytes) -> None:
        """Keep it; as a peer does, not once the connection is closing."""
        if self.closed is None and not self.lost:
            super().send(payload)

    # What is sent

    def text(self, payload: bytes, good: bool | None) -> None:
        """Send a text frame, and check what it leads to."""
        ref = f"r{self.crowd.count()}"
        payload = payload.replace(f'"{REF}"'.encode(), f'"{ref}"'.encode())
        request: wire.AnyRequest | wire.Unparsable
        try:
            request = wire.parse(payload)
        except wire.Unparsable as e:
            request = e
        must(not (good and isinstance(request, wire.Unparsable)), "a good request", payload)
        if isinstance(request, wire.Fetch) and request.wait:
            # What comes later must be told from what is answered then.
            request = msgspec.structs.replace(request, ref=ref)
            payload = msgspec.json.encode(request)
        closed = self.closed is not None
        self.session.text(payload)
        answers = self.direct()
        if not closed:
            self.expect(request, answers)
        self.settle()

    def audio(self, size: int, begins: bool) -> None:
        """Send some bytes of a binary frame, and check what they lead to."""
        self.crowd.count()
        closed = self.closed is not None
        self.session.audio(self.crowd.voice(self.party) * size, begins)
        answers = self.direct()
        if closed:
            return
        if self.party is None:
            self.one(answers, None, {"unauthenticated"})
        elif self.upload is not None:
            self.bad = 0
            if answers:
                id, ref = self.upload
                self.one(answers, ref, {"too-long", "busy"})
                self.upload, self.swallowing = None, {id}
        elif self.swallowing is not None or not begins:
            must(not answers, "audio was answered", answers)
        else:
            self.bad_message(answers, None)
        self.settle()

    # What must come

    def expect(self, request: wire.AnyRequest | wire.Unparsable, answers: list[Any]) -> None:
        """What a text frame must lead to."""
        if self.party is None:
            self.greet(request, answers)
            return
        match request:
            case wire.Submit():
                self.submit(request, answers)
            case wire.End():
                self.end(request, answers)
            case wire.Unparsable(type="submit"):
                ids = {request.id} | ({self.upload[0]} if self.upload else set())
                self.upload, self.swallowing = None, ids
                self.bad_message(answers, request.ref)
            case wire.Unparsable(type="end"):
                if not self.swallow(request.id, answers):
                    self.upload = None
                    self.bad_message(answers, request.ref)
            case wire.Unparsable() | wire.Hello():
                self.bad_message(answers, request.ref)
            case _:
                self.ask(request, answers)

    def greet(self, request: wire.AnyRequest | wire.Unparsable, answers: list[Any]) -> None:
        if isinstance(request, wire.Hello) and request.party is not None:
            self.one(answers, request.ref, set(), {"welcome"})
            must(answers[0]["party"] == request.party, answers)
            self.party = request.party
        else:
            self.one(answers, request.ref, {"unauthenticated"})

    def submit(self, request: wire.Submit, answers: list[Any]) -> None:
        if self.upload is not None:
            self.upload, self.swallowing = None, {self.upload[0], request.id}
            self.bad_message(answers, request.ref)
            return
        self.bad = 0
        assert self.party is not None
        if answers:
            self.one(answers, request.ref, {"busy", "unsupported"})
            self.swallowing = {request.id}
        else:
            self.upload, self.swallowing = (request.id, request.ref), None
            # From now on it may be seen by these.
            self.crowd.sides[self.party, request.id].add(request.receiver or self.party)

    def end(self, request: wire.End, answers: list[Any]) -> None:
        if self.swallow(request.id, answers):
            return
        if self.upload is None or self.upload[0] != request.id:
            self.bad_message(answers, request.ref)
            return
        ref = self.upload[1] if request.ref is None else request.ref
        self.upload, self.bad = None, 0
        answer = self.one(answers, ref, {"bad-audio", "id-taken", "busy"}, {"accepted"})
        if answer["type"] == "accepted":
            self.crowd.accepted += 1

    def swallow(self, id: str | None, answers: list[Any]) -> bool:
        ids, self.swallowing = self.swallowing, None
        if ids is None or not (id is None or id in ids or None in ids):
            return False
        ids.discard(id if id in ids else None if None in ids else next(iter(ids)))
        self.swallowing = ids or None
        must(not answers, "a swallowed end was answered", answers)
        return True

    def ask(self, request: Any, answers: list[Any]) -> None:
        self.bad, self.swallowing = 0, None
        owner = getattr(request, "owner", None) or self.party
        id = getattr(request, "id", None)
        if isinstance(request, wire.Cancel) and self.upload and owner == self.party:
            self.upload = None if self.upload[0] == id else self.upload
        if isinstance(request, wire.Fetch) and request.wait and not answers:
            assert request.ref is not None
            self.waiting.add(request.ref)
            return
        answer = self.one(answers, request.ref, CODES - {"bad-message"}, ANSWERS[type(request)])
        if id is not None and self.party not in {owner, *self.crowd.sides[owner, id]}:
            must(answer.get("code") == "unknown-id", self.party, "saw", request, answer)

    def one(
        self,
        answers: list[Any],
        ref: str | None,
        codes: set[str],
        types: set[str] = frozenset(),  # type: ignore[assignment]
    ) -> dict[str, Any]:
        """The one answer, which must be of these."""
        must(len(answers) == 1, "not one answer", answers)
        answer: dict[str, Any] = answers[0]
        fits = answer["code"] in codes if answer["type"] == "error" else answer["type"] in types
        must(fits, "another answer", answer, codes, types)
        must(answer.get("ref") == ref, "another ref", answer, ref)
        return answer

    def bad_message(self, answers: list[Any], ref: str | None) -> None:
        self.one(answers, ref, {"bad-message"})
        self.bad += 1

    # What came

    def direct(self) -> list[Any]:
        """What came and answers what was sent just now; the rest is checked, and forgotten."""
        sent, self.sent = self.sent, []
        answers = []
        for message in sent:
            self.see(message)
            if message["type"] == "event":
                continue
            if message.get("ref") in self.waiting:
                must(message["type"] in ("transcript", "error"), message)
                self.waiting.remove(message["ref"])
            else:
                answers.append(message)
        return answers

    def settle(self) -> None:
        """What holds after each step."""
        if self.closed is None:
            must(self.bad < MAX_BAD, "so many bad messages", self.bad)
        else:
            must(self.closed[0] == 1008, self.closed)
            must(self.party is None or self.bad == MAX_BAD, "closed", self.closed, self.bad)

    def see(self, message: dict[str, Any]) -> None:
        """What may be in any message."""
        must(message.get("code", "busy") in CODES, message)
        for each in [message, *message.get("transcripts", [])]:
            if "receiver" in each:
                must(self.party in (each["owner"], each["receiver"]), self.party, "sees", each)
        if message["type"] == "transcript":
            words = {word["word"] for word in message["words"]}
            must(words <= {message["owner"]}, "another's words", message)
            self.crowd.delivered += 1

    def overheard(self) -> None:
        """Look at what came by others' doing: fetches that were waiting, and lost uploads."""
        for answer in self.direct():
            must(self.upload is not None, "it answers nothing", answer)
            assert self.upload is not None
            id, ref = self.upload
            self.one([answer], ref, {"gone", "busy"})
            self.upload, self.swallowing = None, {id}
        self.settle()


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
        kept = {key: state.value for key, state in house.store.live().result.items()}
        for path in self.directory.iterdir():
            must(path.stem in kept, "a file of nothing", path.name)
        house.clock.advance(YEARS)
        house.purge()
        house.clock.advance(YEARS)
        house.purge()
        must(not list(self.directory.iterdir()), "files are left")
        (rows,) = house.store.pool.connection.execute("SELECT count(*) FROM transcripts").fetchone()  # type: ignore[attr-defined]
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

    def alive(self) -> int:
        """How many sessions are still somewhere in memory; to be asked when all have left."""
        gc.collect()
        return sum(ref() is not None for ref in self._gone)


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
