"""Stand-ins that answer at once: the core is tested without threads, processes or sockets."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from transcribed.auth import Doorkeeper
from transcribed.desk import Desk
from transcribed.disk import Disk
from transcribed.dispatcher import Dispatcher
from transcribed.errors import RecognitionFailed
from transcribed.interfaces import PoolStatus
from transcribed.recognition import Model, Piece, Window, WindowResult, Word, WordsResult
from transcribed.requests import Host
from transcribed.scheduler import Scheduler
from transcribed.session import Session
from transcribed.spool import Spool
from transcribed.storage._base import SQLStore
from transcribed.storage.sqlite import _schemas
from transcribed.upload import Terms
from transcribed.wire import Limits, Welcome

MODEL = Model("fake", "/nowhere", "whisper", "digest-1", 1, ("sv", "en"), core=20, context=3)


class ImmediatePool:
    """What adbapi's ConnectionPool is, on one connection in memory and without threads."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:")
        for _, schema in sorted(_schemas().items()):
            self.connection.executescript(schema)
        self.broken: Exception | None = None

    def runInteraction(self, work: Callable[[Any], Any]) -> Deferred[Any]:
        """Run `work` in a transaction, now."""
        if self.broken is not None:
            return fail(self.broken)
        try:
            with self.connection:
                return succeed(work(self.connection.cursor()))
        except Exception:
            return fail(Failure())

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


class ImmediateStore(SQLStore):
    """The real store's SQL and rules, answered at once. Set `broken` to have everything fail."""

    def __init__(self) -> None:
        self.pool = ImmediatePool()
        super().__init__(self.pool)  # type: ignore[arg-type]


class ImmediateSpool(Spool):
    """The real spool on a real directory, answered at once. Set `broken` to have it fail."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        super().__init__(directory, None, None, disk or Disk())  # type: ignore[arg-type]
        self.broken: OSError | None = None

    def inThread(self, work: Callable[[], Any]) -> Deferred[Any]:
        """Run `work` now."""
        if self.broken is not None:
            return fail(self.broken)
        try:
            return succeed(work())
        except Exception:
            return fail(Failure())

    def names(self) -> list[str]:
        """The files that are there."""
        return sorted(path.suffix for path in self.directory.iterdir())


@dataclass
class Batch:
    """What a fake worker has in work, and its answer to come."""

    pieces: Sequence[Piece]
    results: Deferred[list[WindowResult]]

    @property
    def window(self) -> Window:
        """Its window, where it is but one."""
        (piece,) = self.pieces
        return piece.window


class FakePool:
    """Recognizers whose answers the test gives.

    :ivar work: what is being transcribed, in the order in which it was begun.
    """

    def __init__(self, workers: int = 1, model: Model | None = MODEL) -> None:
        self.model = model
        self.workers = workers
        self.whenFree: Callable[[], None] = lambda: None
        self.work: list[Batch] = []

    @property
    def idle(self) -> int:
        """How many could take a window."""
        return self.workers - len(self.work)

    def status(self) -> PoolStatus:
        """All is well."""
        return PoolStatus("fake", "float32", self.workers, 1, self.workers, None, None)

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> Deferred[None]:
        """Nothing to stop."""
        return succeed(None)

    def transcribe(self, pieces: Sequence[Piece]) -> Deferred[list[WindowResult]]:
        """Wait for the test's answer."""
        assert self.idle
        batch = Batch(pieces, Deferred())
        self.work.append(batch)
        return batch.results

    def answer(self, *words: str, at: int = 0) -> None:
        """A worker has heard `words`, a second each, in its one window."""
        assert len(self.work[at].pieces) == 1, self.work[at].pieces
        self.answer_all(words, at=at)

    def answer_all(self, *heard: Sequence[str], at: int = 0) -> None:
        """A worker has heard some words, a second each, in each window of its batch."""
        results: list[WindowResult] = [
            WordsResult([Word(word, i, i + 1, 0.5) for i, word in enumerate(words)])
            for words in heard
        ]
        self.work.pop(at).results.callback(results)
        self.whenFree()

    def fail(self, reason: str = "the worker died", at: int = 0) -> None:
        """A worker has failed."""
        self.work.pop(at).results.errback(RecognitionFailed(reason))
        self.whenFree()


class FakePeer:
    """A client's end: what it was sent, and how it was closed."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.closed: tuple[int, str] | None = None
        self.paused = False
        self.address: str | None = "192.0.2.1"
        self.bearer: str | None = None

    def send(self, payload: bytes) -> None:
        """Keep it."""
        self.sent.append(msgspec.json.decode(payload))

    def close(self, code: int, reason: str) -> None:
        """Remember it."""
        self.closed = (code, reason)

    def pause(self) -> None:
        """Remember it."""
        self.paused = True

    def resume(self) -> None:
        """Remember it."""
        self.paused = False


class Party(FakePeer):
    """A party in conversation with a house."""

    def __init__(self, house: House, name: str | None) -> None:
        super().__init__()
        self.session = Session(house.host, self)
        if name is not None:
            self.say(type="hello", party=name)
            assert self.heard()["type"] == "welcome"

    def say(self, **message: object) -> None:
        """Send a request."""
        self.session.text(msgspec.json.encode(message))

    def sound(self, data: bytes) -> None:
        """Send a binary frame."""
        self.session.audio(data, True)

    def heard(self) -> dict[str, Any]:
        """The oldest answer not looked at yet."""
        return self.sent.pop(0)

    def ask(self, **message: object) -> dict[str, Any]:
        """Send a request; its answer, which must be the only one."""
        assert not self.sent, self.sent
        self.say(**message)
        (answer,) = self.sent
        self.sent.clear()
        return answer

    def submit(self, id: str, data: bytes = b"\1\0" * 16000, **more: object) -> dict[str, Any]:
        """Send a whole recording, a second long where nothing else is said."""
        self.say(type="submit", id=id, **more)
        self.sound(data)
        return self.ask(type="end", id=id)


class House:
    """The whole core over fakes.

    :ivar clock: starts at a moment in 2026, as it keeps the time of day.
    :ivar checkers: whose tokens are good; to be set before :meth:`open`.
    :ivar refusals: the codes of all errors that were sent.
    """

    def __init__(self, directory: Path, max_queue: int = 100, pool: FakePool | None = None) -> None:
        self.clock = Clock()
        self.clock.advance(1_795_000_000.0)
        self.directory = directory
        self.store = ImmediateStore()
        self.pool = pool or FakePool()
        self.max_queue = max_queue
        self.checkers: list[Any] = []
        self.refusals: list[str] = []
        self.terms = Terms(ttl=3600.0, language="sv", max_seconds=100.0, max_bytes=19_200_000)
        self.open()

    def open(self) -> None:
        """Start, or start again after whatever happened, with what is on disk."""
        self.spool = self.make_spool()
        self.scheduler = Scheduler(self.max_queue)
        self.desk = Desk(
            self.terms,
            self.store,
            self.spool,
            self.scheduler,
            self.pool,
            self.clock,
            self.clock.seconds,
        )
        self.dispatcher = Dispatcher(
            self.scheduler, self.pool, self.store, self.spool, self.clock, self.desk.changed
        )
        self.desk.wake = self.pool.whenFree = self.dispatcher.pump
        self.doorkeeper = Doorkeeper(self.checkers, self.clock, self.clock.seconds)
        self.host = Host(
            self.desk,
            self.doorkeeper.admit,
            self.greeting,
            self.clock,
            refused=self.refusals.append,
        )
        self.resumed = Deferred.fromCoroutine(self.desk.resume())

    def greeting(self, party: str) -> Welcome:
        """What is said to a party."""
        return Welcome(
            party=party,
            server="transcribed/test",
            model="fake",
            limits=Limits(self.terms.max_seconds, self.terms.most_bytes),
        )

    def party(self, name: str | None) -> Party:
        """Somebody new on the line; None says no hello."""
        return Party(self, name)

    def make_spool(self) -> ImmediateSpool:
        """The disk."""
        return ImmediateSpool(self.directory)

    def purge(self) -> None:
        """The purge comes by."""
        Deferred.fromCoroutine(self.desk.keep_house())
