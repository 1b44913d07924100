"""The real store on its own thread and disk: durability, deletion, preparing."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.enterprise.adbapi import Transaction
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from tests.storagecase import CREATED, NOW, T, transcript
from transcribed.errors import IdTaken, NotFetched, UnknownId
from transcribed.storage import sqlite
from transcribed.storage._base import COLUMNS, _to_row
from transcribed.storage.sqlite import SQLiteStore
from transcribed.transcript import Sides, State


class SQLiteTestCase(TestCase):
    """Has the path of a database on disk."""

    timeout = 30

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.path = directory / "transcripts.sqlite"
        self.opened: list[SQLiteStore] = []

    def tearDown(self) -> None:
        for store in list(self.opened):
            self.close(store)

    def open(self) -> SQLiteStore:
        from twisted.internet import reactor

        SQLiteStore.prepare(self.path)
        store = SQLiteStore(self.path, reactor)
        self.opened.append(store)
        return store

    def close(self, store: SQLiteStore) -> None:
        self.opened.remove(store)
        store.close()

    def version(self) -> int:
        with closing(sqlite3.connect(self.path)) as connection:
            return int(connection.execute("PRAGMA user_version").fetchone()[0])

    def tables(self) -> list[str]:
        with closing(sqlite3.connect(self.path)) as connection:
            rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return sorted(row[0] for row in rows)

    def later(self, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        """Run `work` once the reactor runs, as adbapi's threads start with it."""
        from twisted.internet import reactor

        running: Deferred[None] = Deferred()
        started: Any = reactor
        started.callWhenRunning(running.callback, None)
        return running.addCallback(lambda _: Deferred.fromCoroutine(work))


class DurabilityTests(SQLiteTestCase):
    """The real store, over its own thread."""

    def test_survivesReopening(self) -> Deferred[None]:
        async def work() -> None:
            store = self.open()
            accepted = await store.accept(transcript("k1"))
            await store.accept(transcript("k2", id="m2"))
            await store.finish("k2", "base")
            await store.collect("anna", "m2", "bjorn", NOW)
            acked = (await store.acknowledge("anna", "m2", "bjorn", NOW)).after
            self.close(store)
            again = self.open()
            self.assertEqual(await again.look("anna", "m1", "anna", NOW), accepted)
            self.assertEqual(await again.look("anna", "m2", "anna", NOW), acked)
            self.assertEqual(acked.given, Sides(False, True))

        return self.later(work())

    def test_committedBeforeItIsAnswered(self) -> Deferred[None]:
        async def work() -> None:
            store = self.open()
            await store.accept(transcript())
            with closing(sqlite3.connect(self.path)) as other:
                rows = other.execute("SELECT key, state FROM transcripts").fetchall()
            self.assertEqual(rows, [("k1", "queued")])

        return self.later(work())

    def test_refusalIsRolledBackAndTheNextWorks(self) -> Deferred[None]:
        async def work() -> None:
            store = self.open()
            await store.accept(transcript("k1"))
            refused: list[tuple[Deferred[Any], type[Exception]]] = [
                (store.accept(transcript("k2", sha256="cd")), IdTaken),
                (store.look("anna", "m9", "anna", NOW), UnknownId),
                (store.acknowledge("anna", "m1", "anna", NOW), NotFetched),
                (store.accept(transcript("k1", id="m3")), sqlite3.IntegrityError),
            ]
            for answer, kind in refused:
                failed: Deferred[Any] = self.assertFailure(answer, kind)
                await failed
            self.assertEqual(await store.live(), {"k1": State.QUEUED})

        return self.later(work())

    def test_answersInTheOrderAsked(self) -> Deferred[None]:
        async def work() -> None:
            store = self.open()
            order: list[int] = []

            async def ask(number: int) -> None:
                t = transcript(f"k{number}", id=f"m{number}", created=CREATED + number)
                await store.accept(t)
                order.append(number)

            await gatherResults([Deferred.fromCoroutine(ask(i)) for i in range(20)])
            self.assertEqual(order, list(range(20)))
            unfinished = await store.unfinished()
            self.assertEqual([t.key for t in unfinished], [f"k{i}" for i in range(20)])

        return self.later(work())

    def test_closeFinishesWhatIsQueued(self) -> Deferred[None]:
        async def work() -> None:
            store = self.open()
            asked = [store.accept(transcript(f"k{i}", id=f"m{i}")) for i in range(5)]
            self.close(store)
            await gatherResults(asked)
            self.assertEqual(len(await self.open().live()), 5)

        return self.later(work())

    def test_pragmasInForce(self) -> Deferred[None]:
        async def work() -> None:
            store = self.open()
            found: dict[str, object] = {}
            for name in ("journal_mode", "synchronous", "secure_delete", "busy_timeout"):

                def ask(db: Transaction, name: str = name) -> object:
                    db.execute(f"PRAGMA {name}")
                    return db.fetchone()[0]

                found[name] = await store._run(ask)
            self.assertEqual(
                found,
                {
                    "journal_mode": "wal",
                    "synchronous": 2,  # FULL
                    "secure_delete": 1,
                    "busy_timeout": 5000,
                },
            )

        return self.later(work())

    def test_filesAreTheUsersOnly(self) -> Deferred[None]:
        async def work() -> None:
            self.addCleanup(os.umask, os.umask(0))
            store = self.open()
            await store.accept(transcript())
            modes = {
                path.name: oct(stat.S_IMODE(path.stat().st_mode))
                for path in self.path.parent.iterdir()
            }
            self.assertEqual(
                modes,
                {self.path.name + suffix: "0o600" for suffix in ("", "-wal", "-shm")},
            )

        return self.later(work())


class PrepareTests(SQLiteTestCase):
    """:meth:`SQLiteStore.prepare`."""

    def patchSchemas(self, *upgrades: str) -> None:
        """Have versions after the present ones."""
        schemas = sqlite._schemas()
        for script in upgrades:
            schemas[max(schemas) + 1] = script
        self.patch(sqlite, "_schemas", lambda: schemas)

    def test_makesTheTables(self) -> None:
        SQLiteStore.prepare(self.path)
        self.assertEqual(self.tables(), ["clock", "transcripts"])
        self.assertEqual(self.version(), max(sqlite._schemas()))
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_schemasAreNumberedWithoutGaps(self) -> None:
        schemas = sqlite._schemas()
        self.assertEqual(sorted(schemas), list(range(1, len(schemas) + 1)))

    def test_twiceIsHarmless(self) -> Deferred[None]:
        async def work() -> None:
            await self.open().accept(transcript())
            SQLiteStore.prepare(self.path)
            SQLiteStore.prepare(self.path)
            self.assertEqual(len(await self.open().live()), 1)

        return self.later(work())

    def test_noDatabase(self) -> None:
        content = b"Dear diary, this is no database at all. " * 100
        self.path.write_bytes(content)
        self.assertRaises(sqlite3.Error, SQLiteStore.prepare, self.path)
        self.assertEqual(self.path.read_bytes(), content)

    def test_directory(self) -> None:
        self.path.mkdir()
        self.assertRaises(sqlite3.Error, SQLiteStore.prepare, self.path)

    def test_directoryThatIsNotThere(self) -> None:
        self.assertRaises(sqlite3.Error, SQLiteStore.prepare, self.path / "no" / "such")

    def test_newerSchema(self) -> None:
        SQLiteStore.prepare(self.path)
        newer = max(sqlite._schemas()) + 1
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute(f"PRAGMA user_version = {newer}")
        error = self.assertRaises(sqlite3.Error, SQLiteStore.prepare, self.path)
        self.assertIn(str(newer), str(error))
        self.assertEqual(self.version(), newer)

    def test_upgrade(self) -> Deferred[None]:
        async def work() -> None:
            store = self.open()
            accepted = await store.accept(transcript())
            self.close(store)
            version = self.version()
            self.patchSchemas("CREATE TABLE one (a);", "CREATE TABLE two (a); -- the end")
            again = self.open()
            self.assertEqual(self.version(), version + 2)
            self.assertEqual(self.tables(), ["clock", "one", "transcripts", "two"])
            self.assertEqual(await again.look("anna", "m1", "anna", NOW), accepted)

        return self.later(work())

    def test_upgradeThatBreaksOffLeavesNothing(self) -> None:
        SQLiteStore.prepare(self.path)
        version = self.version()
        self.patchSchemas("CREATE TABLE one (a); DROP TABLE transcripts; CREATE TABLE one (a);")
        self.assertRaises(sqlite3.Error, SQLiteStore.prepare, self.path)
        self.assertEqual((self.tables(), self.version()), (["clock", "transcripts"], version))

    def test_upgradesAreDoneTogetherOrNotAtAll(self) -> None:
        SQLiteStore.prepare(self.path)
        version = self.version()
        self.patchSchemas("CREATE TABLE one (a);", "CREATE TABLE two (a); rubbish;")
        self.assertRaises(sqlite3.Error, SQLiteStore.prepare, self.path)
        self.assertEqual((self.tables(), self.version()), (["clock", "transcripts"], version))

    def test_firstSchemaToPresent(self) -> Deferred[None]:
        """A database of the first release is taken over with all that is in it."""

        async def work() -> None:
            with self.schemas(1):
                SQLiteStore.prepare(self.path)
            row = _to_row(transcript(), COLUMNS)
            with closing(sqlite3.connect(self.path)) as connection, connection:
                connection.execute(f"INSERT INTO transcripts VALUES ({', '.join('?' * 19)})", row)
            store = self.open()
            self.assertEqual(self.version(), max(sqlite._schemas()))
            self.assertEqual(await store.look("anna", "m1", "bjorn", NOW), transcript())

        return self.later(work())

    @contextmanager
    def schemas(self, newest: int) -> Iterator[None]:
        """Have an earlier program."""
        schemas = {n: script for n, script in sqlite._schemas().items() if n <= newest}
        with mock.patch.object(sqlite, "_schemas", lambda: schemas):
            yield


class DamageTests(SQLiteTestCase):
    """A database that is not sound is refused, and left as it is."""

    def filled(self) -> None:
        """A database of many pages."""
        SQLiteStore.prepare(self.path)
        with closing(sqlite3.connect(self.path)) as connection, connection:
            rows = [_to_row(transcript(f"k{i}", id=f"m{i}"), COLUMNS) for i in range(2000)]
            connection.executemany(f"INSERT INTO transcripts VALUES ({', '.join('?' * 19)})", rows)

    def assertRefused(self, words: str) -> None:
        before = {path.name: path.read_bytes() for path in self.path.parent.iterdir()}
        error = self.assertRaises(sqlite3.Error, SQLiteStore.prepare, self.path)
        self.assertIn(words, str(error))
        self.assertNotIn("\n", str(error))
        for name, content in before.items():
            self.assertEqual((self.path.parent / name).read_bytes(), content, name)

    def overwrite(self, at: int, content: bytes) -> None:
        with open(self.path, "r+b") as file:
            file.seek(at)
            file.write(content)

    def test_pageOfRubbish(self) -> None:
        self.filled()
        self.overwrite(40 * 4096, b"\xa5" * 4096)
        self.assertRefused("transcripts.sqlite is damaged: ")

    def test_pageOfZeros(self) -> None:
        self.filled()
        self.overwrite(40 * 4096, bytes(4096))
        self.assertRefused("transcripts.sqlite is damaged: ")

    def test_cutOff(self) -> None:
        self.filled()
        os.truncate(self.path, self.path.stat().st_size // 4096 // 2 * 4096)
        self.assertRefused("malformed")

    def test_header(self) -> None:
        self.filled()
        self.overwrite(0, b"rubbish, rubbish")
        self.assertRefused("not a database")

    def test_whatAKilledDaemonLeftIsNotTakenForDamage(self) -> None:
        """Commits that are only in the log beside the file are there after the next start."""
        SQLiteStore.prepare(self.path)
        killed = self.path.parent / "killed"
        killed.mkdir()
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute(
                f"INSERT INTO transcripts VALUES ({', '.join('?' * 19)})",
                _to_row(transcript(), COLUMNS),
            )
            connection.commit()
            for name in (self.path.name, f"{self.path.name}-wal"):
                shutil.copy(self.path.with_name(name), killed)
        left = killed / self.path.name
        self.assertGreater(left.with_name(f"{left.name}-wal").stat().st_size, 0)
        SQLiteStore.prepare(left)
        with closing(sqlite3.connect(left)) as connection:
            self.assertEqual(
                connection.execute("SELECT key FROM transcripts").fetchall(), [("k1",)]
            )

    def test_damagedAndOfAKilledDaemon(self) -> None:
        self.filled()
        connection = sqlite3.connect(self.path)
        self.addCleanup(connection.close)
        connection.execute("DELETE FROM transcripts WHERE key = 'k1'")
        connection.commit()
        killed = self.path.parent / "killed"
        killed.mkdir()
        for name in (self.path.name, f"{self.path.name}-wal"):
            shutil.copy(self.path.with_name(name), killed)
        self.path = killed / self.path.name
        self.overwrite(40 * 4096, bytes(4096))
        self.assertRefused("transcripts.sqlite is damaged: ")


class OldVersionTests(SQLiteTestCase):
    """A copy of the old database stays beside the one that is upgraded."""

    def setUp(self) -> None:
        super().setUp()
        SQLiteStore.prepare(self.path)
        self.present = sqlite._schemas()
        self.insert("k1")

    def insert(self, key: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(
                f"INSERT INTO transcripts VALUES ({', '.join('?' * 19)})",
                _to_row(transcript(key, id=key), COLUMNS),
            )

    def upgrade(self, script: str = "CREATE TABLE more (a);") -> None:
        """Prepare with one version more than there is."""
        self.patch(sqlite, "_schemas", lambda: {**self.present, max(self.present) + 1: script})
        SQLiteStore.prepare(self.path)

    def copies(self) -> dict[str, list[str]]:
        """All other files that are there, and the keys in them."""
        found = {}
        for path in self.path.parent.iterdir():
            if path.name != self.path.name:
                self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
                whole = path.parent / "whole" / self.path.name
                whole.parent.mkdir(exist_ok=True)
                shutil.copy(path, whole)
                with closing(sqlite3.connect(whole)) as connection:
                    self.assertEqual(sqlite.version_of(connection), max(self.present))
                    rows = connection.execute("SELECT key FROM transcripts ORDER BY key")
                    found[path.name] = [row[0] for row in rows]
                shutil.rmtree(whole.parent)
        return found

    @property
    def name(self) -> str:
        return f"transcripts-v{max(self.present)}.sqlite.bak"

    def test_copy(self) -> None:
        self.addCleanup(os.umask, os.umask(0))
        self.upgrade()
        self.assertEqual(self.tables(), ["clock", "more", "transcripts"])
        self.assertEqual(self.copies(), {self.name: ["k1"]})

    def test_noneWithoutUpgrade(self) -> None:
        SQLiteStore.prepare(self.path)
        self.assertEqual(self.copies(), {})

    def test_itIsThereWhenTheUpgradeFails(self) -> None:
        for _ in range(3):
            self.assertRaises(sqlite3.Error, self.upgrade, "CREATE TABLE more (a); rubbish;")
            self.assertEqual(self.tables(), ["clock", "transcripts"])
            # What is the same is not kept twice.
            self.assertEqual(self.copies(), {self.name: ["k1"]})

    def test_anEarlierOneIsNotOverwritten(self) -> None:
        self.assertRaises(sqlite3.Error, self.upgrade, "rubbish;")
        self.insert("k2")
        self.assertRaises(sqlite3.Error, self.upgrade, "rubbish;")
        self.insert("k3")
        self.upgrade()
        self.assertEqual(
            self.copies(),
            {
                self.name: ["k1"],
                f"{self.name}.2": ["k1", "k2"],
                f"{self.name}.3": ["k1", "k2", "k3"],
            },
        )

    def test_whatAnAccidentLeftIsReplaced(self) -> None:
        (self.path.parent / f"{self.name}.part").write_bytes(b"half")
        self.upgrade()
        self.assertEqual(self.copies(), {self.name: ["k1"]})

    def test_withoutACopyThereIsNoUpgrade(self) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with mock.patch.object(os, "fsync", full):
            self.assertRaises(OSError, self.upgrade)
        self.assertEqual(self.tables(), ["clock", "transcripts"])
        self.assertEqual(self.copies(), {})
