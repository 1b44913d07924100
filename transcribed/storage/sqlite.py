"""The transcript store on SQLite: one file, one connection, one thread of its own."""

from __future__ import annotations

import itertools
import re
import sqlite3
from contextlib import closing
from importlib.resources import files
from pathlib import Path

from twisted.enterprise.adbapi import ConnectionPool
from twisted.internet.interfaces import IReactorCore

from transcribed.clock import Reading
from transcribed.files import written
from transcribed.storage._base import SQLStore, follow


def _schemas() -> dict[int, str]:
    """The schema's versions: the SQL that leads to each from the one before."""
    found = {}
    for file in files("transcribed.storage").joinpath("schema").iterdir():
        if match := re.fullmatch(r"transcripts-v(\d+)\.sql", file.name):
            found[int(match[1])] = file.read_text("utf-8")
    return found


def _configure(connection: sqlite3.Connection) -> None:
    for pragma in (
        "journal_mode = WAL",
        # What "accepted" promises is on disk after each commit, also when the power is cut.
        "synchronous = FULL",
        "secure_delete = ON",
        "busy_timeout = 5000",
        # KiB, 2 MB by default. What is asked is mostly new, and the system keeps the file's pages.
        "cache_size = -512",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, not even when the last daemon was killed."""
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)


def snapshot(connection: sqlite3.Connection) -> bytes:
    """The whole database as one file's content, as it is between two transactions."""
    with closing(sqlite3.connect(":memory:")) as copy:
        connection.backup(copy)
        return copy.serialize()


def version_of(connection: sqlite3.Connection) -> int:
    """The version of the schema; 0 where there is none yet.

    Raises :exc:`sqlite3.DatabaseError` where this program does not know it.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    newest = max(_schemas())
    if version > newest:
        raise sqlite3.DatabaseError(
            f"its schema is version {version}, and this program knows {newest}"
        )
    return version


def _examine(path: Path) -> int:
    """The version of a database that is found sound; see :meth:`SQLiteStore.prepare`."""
    with closing(open_to_read(path)) as connection:
        # It sees what bad disks and torn writes do to pages. What integrity_check looks at besides,
        # each row's entries in each index, takes ten times as long: eight seconds a million rows.
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            # The first line only names the database.
            raise sqlite3.DatabaseError(f"{path.name} is damaged: {found.splitlines()[-1]}")
        return version_of(connection)


def _keep_old(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Write a copy beside the database, once, under a name that is still free."""
    content = snapshot(connection)
    for number in itertools.count(1):
        copy = path.with_name(f"{path.stem}-v{version}.sqlite.bak{f'.{number}' * (number > 1)}")
        if not copy.exists():
            break
        if copy.read_bytes() == content:
            return
    with written(copy) as file:
        file.write(content)


class SQLiteStore(SQLStore):
    """A :class:`SQLStore` in the file `path`, which :meth:`prepare` must have seen before."""

    def __init__(self, path: Path, reactor: IReactorCore) -> None:
        super().__init__(
            ConnectionPool(
                "sqlite3",
                str(path),
                check_same_thread=False,
                # One connection, one thread: commits happen, and are answered, as asked.
                cp_min=1,
                cp_max=1,
                cp_openfun=_configure,
                cp_reactor=reactor,
                cp_noisy=False,
                cp_name="transcripts",
            )
        )

    @staticmethod
    def prepare(path: Path, reading: Reading | None = None) -> float:
        """Make the file, or upgrade its tables, a copy being kept beside it; waits for the disk.

        Then what :meth:`SQLStore.follow` does, where the machine's clock is given: nothing may
        expire before that.

        Raises :exc:`sqlite3.DatabaseError` where it is not a database, damaged, or of a newer
        version, and :exc:`OSError`; the file is then as it was, an upgrade done as a whole or not
        at all.
        """
        schemas = _schemas()
        version = 0
        if path.is_file():
            # What SQLite puts beside the file gets the same mode.
            path.chmod(0o600)
            version = _examine(path)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            path.chmod(0o600)
            _configure(connection)
            steps = range(version + 1, max(schemas) + 1)
            if version and steps:
                _keep_old(connection, path, version)
            if steps:
                script = "\n;".join(schemas[number] for number in steps)
                # Of a transaction that is not committed, closing leaves nothing.
                connection.executescript(
                    f"BEGIN; {script}\n; PRAGMA user_version = {max(schemas)}; COMMIT;"
                )
            if reading is None:
                return 0.0
            connection.execute("BEGIN")
            moved = follow(connection.cursor(), reading)
            connection.execute("COMMIT")
            return moved
