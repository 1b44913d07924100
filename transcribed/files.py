"""Files that are whole or are not there, however the machine ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PART = ".part"
"""Ends the name of what is being written; a crash may leave it."""


def private(path: str, flags: int) -> int:
    """An opener, as of :func:`open`, of files for their user only."""
    return os.open(path, flags, 0o600)


def sync_directory(path: Path) -> None:
    """Come back when the names in a directory would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write: after the block it is at `path` and would survive a loss of power.

    It is for its user only. What was at `path` before stays there until then, and for good where
    the block, or the disk, fails. There must be one who writes it at a time.
    """
    part = path.with_name(path.name + PART)
    file = _new(part)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _new(part: Path) -> BinaryIO:
    try:
        return open(part, "xb", opener=private)
    except FileExistsError:
        # The machine broke down while it was written. Not followed where it leads somewhere.
        part.unlink()
        return open(part, "xb", opener=private)
