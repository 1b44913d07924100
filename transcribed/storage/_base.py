"""The transcript store in SQL, whatever the engine: one transaction a method, rules from the core.

Every method answers with a Deferred that fires after the commit. Rules that refuse raise the
errors of :mod:`transcribed.errors` out of the transaction, which is rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from twisted.enterprise.adbapi import ConnectionPool, Transaction
from twisted.internet.defer import Deferred

from transcribed.clock import Reading
from transcribed.errors import IdTaken, UnknownId
from transcribed.transcript import ENDED, UNFINISHED, Change, Sides, State, Transcript

T = TypeVar("T")

COLUMNS = [
    *("key", "owner", "id", "receiver", "rate", "channels", "frames", "sha256", "language"),
    *("state", "created", "expires", "forget", "sent_owner", "sent_receiver"),
    *("given_owner", "given_receiver", "model", "reason"),
]
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM transcripts"
_INSERT = f"INSERT INTO transcripts ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
_CHANGING = COLUMNS[COLUMNS.index("state") :]
_UPDATE = f"UPDATE transcripts SET {', '.join(f'{c} = ?' for c in _CHANGING)} WHERE key = ?"


def _from_row(row: tuple[Any, ...]) -> Transcript:
    named = dict(zip(COLUMNS, row, strict=True))
    sent = Sides(bool(named.pop("sent_owner")), bool(named.pop("sent_receiver")))
    given = Sides(bool(named.pop("given_owner")), bool(named.pop("given_receiver")))
    state = State(named.pop("state"))
    return Transcript(state=state, sent=sent, given=given, **named)


def _to_row(transcript: Transcript, columns: Iterable[str]) -> list[Any]:
    flat = {
        "sent_owner": transcript.sent.owner,
        "sent_receiver": transcript.sent.receiver,
        "given_owner": transcript.given.owner,
        "given_receiver": transcript.given.receiver,
        "state": transcript.state.value,
    }
    return [flat[c] if c in flat else getattr(transcript, c) for c in columns]


def follow(db: Any, reading: Reading) -> float:
    """See :meth:`SQLStore.follow`; in a transaction of the cursor `db`."""
    db.execute("SELECT boot, boot_time FROM clock")
    row = db.fetchone()
    moved = reading.moved_since(Reading(*row)) if row else 0.0
    if moved:
        db.execute(
            "UPDATE transcripts"
            " SET created = created + ?, expires = expires + ?, forget = forget + ?",
            (moved, moved, moved),
        )
    if moved or row is None or row[0] != reading.boot:
        db.execute("DELETE FROM clock")
        db.execute("INSERT INTO clock VALUES (?, ?)", (reading.boot, reading.offset))
    return moved


class SQLStore:
    """Implements :class:`transcribed.interfaces.ITranscriptStore` on a DB-API connection pool."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def close(self) -> None:
        """Finish what is queued and close; nothing may be asked afterwards."""
        self._pool.close()

    def _run(self, work: Callable[[Transaction], T]) -> Deferred[T]:
        done: Deferred[T] = self._pool.runInteraction(work)
        return done

    @staticmethod
    def _one(db: Transaction, where: str, *values: object) -> Transcript | None:
        db.execute(f"{_SELECT} WHERE {where}", values)
        row = db.fetchone()
        return _from_row(row) if row else None

    @classmethod
    def _seen(cls, db: Transaction, owner: str, id: str, party: str) -> Transcript:
        """The transcript, if `party` is one of its sides; raises :exc:`UnknownId`.

        To a stranger one that is there and one that is not are the same search of an index: no
        row is read either way, so that the time it takes tells nothing.
        """
        if party == owner:
            stored = cls._one(db, "owner = ? AND id = ?", owner, id)
        else:
            stored = cls._one(db, "owner = ? AND id = ? AND receiver = ?", owner, id, party)
        if stored is None:
            raise UnknownId
        return stored

    @staticmethod
    def _all(db: Transaction, where: str, *values: object) -> list[Transcript]:
        db.execute(f"{_SELECT} WHERE {where}", values)
        return [_from_row(row) for row in db.fetchall()]

    @staticmethod
    def _save(db: Transaction, before: Transcript, after: Transcript) -> Transcript:
        if after != before:
            db.execute(_UPDATE, (*_to_row(after, _CHANGING), after.key))
        return after

    def _edit(
        self, owner: str, id: str, party: str, now: float, rule: Callable[[Transcript], Transcript]
    ) -> Deferred[Change]:
        def work(db: Transaction) -> Change:
            stored = self._seen(db, owner, id, party)
            return Change(stored, self._save(db, stored, rule(stored.seen_by(party, now))))

        return self._run(work)

    def _advance(
        self, key: str, rule: Callable[[Transcript], Transcript]
    ) -> Deferred[Change | None]:
        def work(db: Transaction) -> Change | None:
            stored = self._one(db, "key = ?", key)
            if stored is None or stored.state in ENDED:
                return None
            if stored.state not in UNFINISHED:
                return Change(stored, stored)
            return Change(stored, self._save(db, stored, rule(stored)))

        return self._run(work)

    def accept(self, new: Transcript) -> Deferred[Transcript]:
        """Keep a new transcript, or find the one that the same submission made before.

        In the second case the answer has another key. Raises :exc:`IdTaken`.
        """

        def work(db: Transaction) -> Transcript:
            stored = self._one(db, "owner = ? AND id = ?", new.owner, new.id)
            if stored is not None and (stored.forget is None or stored.forget > new.created):
                if not stored.same_recording(new):
                    raise IdTaken
                return stored.seen_by(new.owner, new.created)
            if stored is not None:
                db.execute("DELETE FROM transcripts WHERE key = ?", (stored.key,))
            db.execute(_INSERT, _to_row(new, COLUMNS))
            return new

        return self._run(work)

    def look(self, owner: str, id: str, party: str, now: float) -> Deferred[Transcript]:
        """The transcript as `party` may see it; raises :exc:`UnknownId` or :exc:`Gone`."""

        def work(db: Transaction) -> Transcript:
            return self._seen(db, owner, id, party).seen_by(party, now).present()

        return self._run(work)

    def collect(self, owner: str, id: str, party: str, now: float) -> Deferred[Transcript]:
        """As :meth:`look`, and a finished one is marked as sent to `party`."""
        edited = self._edit(owner, id, party, now, lambda t: t.send_to(party))
        return edited.addCallback(lambda change: change.after)

    def acknowledge(self, owner: str, id: str, party: str, now: float) -> Deferred[Change]:
        """`party` has the text; see :meth:`transcribed.transcript.Transcript.acknowledge`."""
        return self._edit(owner, id, party, now, lambda t: t.acknowledge(party))

    def cancel(self, owner: str, id: str, now: float) -> Deferred[Change]:
        """The owner wants it deleted; raises :exc:`UnknownId`."""
        return self._edit(owner, id, owner, now, lambda t: t.cancel())

    def listing(self, party: str, now: float) -> Deferred[list[Transcript]]:
        """All that `party` is a side of, has not acked, and that are not gone; oldest first."""

        def work(db: Transaction) -> list[Transcript]:
            return self._all(
                db,
                "((owner = ? AND given_owner = 0) OR (receiver = ? AND given_receiver = 0))"
                " AND forget IS NULL AND expires > ? ORDER BY created, key",
                party,
                party,
                now,
            )

        return self._run(work)

    def begin(self, key: str) -> Deferred[Change | None]:
        """Its first window is in work. None when it has ended; no change when it is finished."""
        return self._advance(key, lambda t: replace(t, state=State.TRANSCRIBING))

    def finish(self, key: str, model: str) -> Deferred[Change | None]:
        """Its text is on disk. None when it has ended; no change when it was finished already."""
        return self._advance(key, lambda t: replace(t, state=State.READY, model=model))

    def fail(self, key: str, reason: str) -> Deferred[Change | None]:
        """It cannot be transcribed. None when it has ended; no change when it is finished."""
        return self._advance(key, lambda t: replace(t, state=State.FAILED, reason=reason))

    def expire(self, now: float) -> Deferred[list[Transcript]]:
        """End all whose time is over, and answer with them; forget the names that are due."""

        def work(db: Transaction) -> list[Transcript]:
            db.execute("DELETE FROM transcripts WHERE forget <= ?", (now,))
            due = self._all(db, "forget IS NULL AND expires <= ?", now)
            return [self._save(db, transcript, transcript.expire(now)) for transcript in due]

        return self._run(work)

    def follow(self, reading: Reading) -> Deferred[float]:
        """Move all times along where the machine's clock was set since it was read last.

        So that all live as long as they were promised to. Answers by how many seconds.
        """
        return self._run(lambda db: follow(db, reading))

    def unfinished(self) -> Deferred[list[Transcript]]:
        """All that are still to be transcribed, oldest first."""
        return self._run(
            lambda db: self._all(db, "state IN ('queued', 'transcribing') ORDER BY created, key")
        )

    def live(self) -> Deferred[dict[str, State]]:
        """The keys of all that have files in the spool, with their states."""

        def work(db: Transaction) -> dict[str, State]:
            db.execute("SELECT key, state FROM transcripts WHERE forget IS NULL")
            return {key: State(state) for key, state in db.fetchall()}

        return self._run(work)
