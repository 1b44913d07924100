"""What is left on the daemon's disk: looked at from outside."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from torture.ledger import Recording


def traces(spool: Path, recording: Recording) -> list[str]:
    """The files of a daemon's spool that hold audio or text of a recording."""
    found = []
    for path in sorted(spool.iterdir()):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        if path.suffix == ".audio":
            is_of_it = bool(recording.mark) and recording.mark in data
        elif path.suffix == ".text":
            # Where nothing was said, all texts are alike.
            is_of_it = bool(recording.words) and _words(data) == recording.words
        else:
            is_of_it = False
        if is_of_it:
            found.append(f"{path.name} of {recording.name}")
    return found


def _words(data: bytes) -> object:
    try:
        return json.loads(data)["words"]
    except ValueError:
        # It is just being written.
        return None


def leftovers(state: Path, secrets: Iterable[bytes]) -> list[str]:
    """What is in the spool, and files anywhere in the state directory that hold any of `secrets`.

    To be asked when no recording is alive. Models are left out.
    """
    secrets = list(secrets)
    found = [f"{path.name} in the spool" for path in sorted((state / "spool").iterdir())]
    for path in _files(state):
        data = path.read_bytes()
        held = sum(secret in data for secret in secrets)
        if held:
            found.append(f"{held} texts or sounds in {path.relative_to(state)}")
    return found


def _files(state: Path) -> Iterator[Path]:
    for path in sorted(state.iterdir()):
        if path.name == "models":
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path


def rows(state: Path) -> list[tuple[str, str, str]]:
    """The owners, ids and states in a stopped daemon's database; raises where it is damaged."""
    with closing(sqlite3.connect(state / "transcripts.sqlite")) as database:
        (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        return database.execute("SELECT owner, id, state FROM transcripts").fetchall()
