"""A backup of a state directory while its daemon goes on: one tar file, which holds together.

The daemon writes a file before it commits the row that needs it, and deletes a file after it has
committed that nobody needs it. So a copy of the database and copies of the files that its rows need
belong together, whenever each was made; a file that is gone already has a newer row.

Nothing is written into the state directory: what is purged there is gone there.
"""

from __future__ import annotations

import io
import os
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from transcribed.files import sync_directory
from transcribed.recognition import Transcription
from transcribed.spool import AUDIO, TEXT, WINDOWS
from transcribed.storage.sqlite import open_to_read, version_of
from transcribed.transcript import UNFINISHED, State
from transcribed.wire import SAMPLE_BYTES

DATABASE, SPOOL = "transcripts.sqlite", "spool"

ROUNDS = 20
"""So often the database is copied, at most: each round copies what came while the last one did."""

_LIVE = f"""SELECT owner || '/' || id, key, state, frames * channels * {SAMPLE_BYTES}
FROM transcripts WHERE forget IS NULL AND state != '{State.FAILED}' ORDER BY created, key"""


class BackupFailed(Exception):
    """There is no backup, and the reason why, for people."""


class NoState(BackupFailed):
    """What was to be backed up is no state directory."""


@dataclass(frozen=True)
class Backup:
    """What is in a backup.

    :ivar transcripts: how many there are whose audio or text is needed.
    :ivar size: of the file, bytes.
    :ivar lost: names, ``OWNER/ID``, of those whose file was not there, or damaged, while their row
        says that it should be.
    """

    transcripts: int
    size: int
    lost: list[str]


@dataclass(frozen=True)
class _Need:
    """What a row needs: its audio, of so many bytes, or its text, of None."""

    name: str
    key: str
    size: int | None

    @property
    def file(self) -> str:
        return self.key + (TEXT if self.size is None else AUDIO)


def back_up(state: Path, file: Path) -> Backup:
    """Write a backup of the state directory to `file`, which appears when it is whole and synced.

    To restore it, unpack it into a new directory and start a daemon on that.

    Raises :exc:`BackupFailed`, :exc:`OSError` or :exc:`sqlite3.Error`, and leaves nothing then.
    """
    if not ((state / DATABASE).is_file() and (state / SPOOL).is_dir()):
        raise NoState(f"{state} is no state directory: it has no {DATABASE} and {SPOOL}")
    if state.resolve() in file.resolve().parents:
        raise BackupFailed(f"{file} is in the state directory, where deleted audio must be gone")
    with _whole(file) as out:
        with tarfile.open(fileobj=out, mode="w", dereference=True) as tar:
            transcripts, lost = _fill(tar, state)
        size = out.tell()
    return Backup(transcripts, size, lost)


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A new private file that has its name once it is written and on disk, or never."""

    def check() -> None:
        if os.path.lexists(path):
            raise BackupFailed(f"{path} is there already, and is not overwritten")

    check()
    if not path.parent.is_dir():
        raise BackupFailed(f"{path.parent} is no directory")
    descriptor, part = tempfile.mkstemp(".part", f".{path.name}.", path.parent)
    try:
        with open(descriptor, "wb") as out:
            yield out
            out.flush()
            os.fsync(descriptor)
        check()
        os.rename(part, path)
    except BaseException:
        os.unlink(part)
        raise
    sync_directory(path.parent)


def _fill(tar: tarfile.TarFile, state: Path) -> tuple[int, list[str]]:
    """Write all; answers how many rows need a file, and the names of those that have none."""
    _add_directory(tar, state / SPOOL)
    kept: set[str] = set()
    missed: set[str] = set()
    with closing(open_to_read(state / DATABASE)) as database:
        if not version_of(database):
            raise NoState(f"{state / DATABASE} has no transcripts")
        for _ in range(ROUNDS):
            with closing(sqlite3.connect(":memory:")) as copy:
                database.backup(copy)
                needs = _needs(copy)
                news = [need for need in needs if need.file not in kept | missed]
                for need in news:
                    (kept if _add(tar, state / SPOOL, need) else missed).add(need.file)
                if missed.isdisjoint(need.file for need in news):
                    # What was missed before, and is needed still, is not there for any row.
                    lost = [need.name for need in needs if need.file in missed]
                    _add_bytes(tar, DATABASE, copy.serialize(), os.stat(state / DATABASE))
                    return len(needs), lost
    raise BackupFailed("too much is happening in the state directory: try again later")


def _needs(database: sqlite3.Connection) -> list[_Need]:
    return [
        _Need(name, key, size if State(state) in UNFINISHED else None)
        for name, key, state, size in database.execute(_LIVE)
    ]


def _add(tar: tarfile.TarFile, spool: Path, need: _Need) -> bool:
    """Add what is needed; answers whether it was there."""
    try:
        with open(spool / need.file, "rb") as file:
            if need.size is None:
                text = file.read()
                msgspec.json.decode(text, type=Transcription)
                _add_bytes(tar, f"{SPOOL}/{need.file}", text, os.fstat(file.fileno()))
            elif os.fstat(file.fileno()).st_size == need.size:
                _add_file(tar, file)
            else:
                return False
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return False
    if need.size is not None:
        try:
            # What is added to it meanwhile is only transcribed once more.
            with open(spool / (need.key + WINDOWS), "rb") as file:
                _add_file(tar, file)
        except FileNotFoundError:
            pass
    return True


def _add_file(tar: tarfile.TarFile, file: BinaryIO) -> None:
    """Add a file of the spool, as long as it is now."""
    info = tar.gettarinfo(arcname=f"{SPOOL}/{Path(file.name).name}", fileobj=file)
    info.mode = 0o600
    tar.addfile(info, file)


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes, like: os.stat_result) -> None:
    """Add what is in memory, with the owner and the time of a file."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o600
    info.uid, info.gid, info.mtime = like.st_uid, like.st_gid, like.st_mtime
    tar.addfile(info, io.BytesIO(content))


def _add_directory(tar: tarfile.TarFile, path: Path) -> None:
    info = tar.gettarinfo(path, arcname=SPOOL)
    info.mode = 0o700
    tar.addfile(info)
