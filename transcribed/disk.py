"""How much of the disk recordings may take: a quota, and what stays free all the same."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from transcribed.errors import Busy

RETRY_FULL_DISK = 30.0
"""Seconds after which a client may try again when the disk was full."""
LOOK_EVERY = 2**20
"""Bytes written between two looks at what is free."""


class Disk:
    """What is on it, and whether more may be.

    Texts of what was accepted are never refused: what stays free is for them.

    :ivar used: bytes of audio and text.
    :ivar quota: the most of them.
    :param floor: bytes that uploads leave free.
    """

    def __init__(self, quota: int = 2**60, floor: int = 0) -> None:
        self.quota = quota
        self.used = 0
        self._floor = floor
        self._directory: Path | None = None
        self._sizes: dict[Path, int] = {}
        self._unseen = 0
        # Files are written and deleted in several threads.
        self._lock = threading.Lock()

    def open(self, directory: Path, there: list[Path]) -> None:
        """Where it is, and which files are there."""
        self._directory = directory
        for path in there:
            self.wrote(path, path.stat().st_size)

    @property
    def free(self) -> int:
        """Bytes that are free for this user."""
        assert self._directory is not None
        found = os.statvfs(self._directory)
        return found.f_bavail * found.f_frsize

    def wrote(self, path: Path, size: int) -> None:
        """A file has become longer by `size` bytes."""
        with self._lock:
            self._sizes[path] = self._sizes.get(path, 0) + size
            self.used += size

    def deleted(self, path: Path) -> None:
        """A file is gone, if it was there."""
        with self._lock:
            self.used -= self._sizes.pop(path, 0)

    def refusing(self) -> str | None:
        """Why nothing more is taken; None where there is room."""
        if self.used >= self.quota:
            return "the disk quota is used up"
        try:
            return "the disk is full" if self.free < self._floor else None
        except OSError:
            return "the disk cannot be read"

    def claim(self, size: int) -> None:
        """So much more audio is to be written; raises :exc:`Busy` where there is no room."""
        if self.used + size > self.quota:
            raise Busy("the disk quota is used up", RETRY_FULL_DISK)
        self._unseen += size
        if self._unseen >= LOOK_EVERY or not size:
            self._unseen = 0
            if self.free < self._floor:
                raise Busy("the disk is full", RETRY_FULL_DISK)
