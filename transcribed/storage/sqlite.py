"""The transcript store on SQLite: one file, one connection, one thread of its own."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from importlib.resources import files
from pathlib import Path

from twisted.enterprise.adbapi import ConnectionPool
from twisted.internet.interfaces import IReactorCore

from transcribed.storage._base import SQLStore


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
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()


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
    def prepare(path: Path) -> None:
        """Make the file, or upgrade its tables; waits for the disk.

        Raises :exc:`sqlite3.DatabaseError` where it is not a database, or of a newer version.
        """
        schemas = _schemas()
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            path.chmod(0o600)
            _configure(connection)
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > max(schemas):
                raise sqlite3.DatabaseError(
                    f"its schema is version {version}, and this program knows {max(schemas)}"
                )
            for number in range(version + 1, max(schemas) + 1):
                script = f"BEGIN; {schemas[number]}\n; PRAGMA user_version = {number}; COMMIT;"
                connection.executescript(script)
