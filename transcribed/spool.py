"""The files of the transcripts: audio until it is transcribed, window results, and the text.

A transcript's files are named by its key: ``KEY.audio``, ``KEY.windows``, ``KEY.text``. Deleting is
unlinking whole files, so that nothing of them stays behind in other ones.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.internet.interfaces import IReactorThreads
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from transcribed.disk import RETRY_FULL_DISK, Disk
from transcribed.errors import Busy
from transcribed.files import private, sync_directory, written
from transcribed.recognition import StoredWindow, Transcription
from transcribed.transcript import FINISHED, UNFINISHED, State

T = TypeVar("T")

_SCARCE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open",
}

AUDIO, WINDOWS, TEXT = ".audio", ".windows", ".text"
SAY_EVERY = 600.0
"""Seconds between two lines in the log about the same file that cannot be deleted."""


class Undeleted(OSError):
    """Files could not be deleted; the log says which. It is tried again."""


class Intake:
    """Audio on its way in: appended to as frames arrive, then kept or discarded.

    Appending is a write into the page cache and happens on the reactor's thread; what waits for the
    disk does not. So whoever opens the audio sees all that was written, at once, and the windows of
    it that are transcribed already can be kept beside it.

    :ivar size: bytes so far.
    """

    def __init__(self, spool: Spool, key: str) -> None:
        self.key = key
        self.size = 0
        self._spool = spool
        self._path = spool.audio_path(key)
        self._digest = hashlib.sha256()
        with _disk_errors():
            self._file = open(self._path, "xb", buffering=0, opener=private)  # noqa: SIM115
            try:
                spool.windows_path(key).touch(0o600, exist_ok=False)
            except BaseException:
                self.discard()
                raise

    def write(self, data: bytes) -> None:
        """Append `data`; raises :exc:`Busy` when the disk, or the quota, is full."""
        self._spool.disk.claim(len(data))
        with _disk_errors():
            written = 0
            while written < len(data):
                written += self._file.write(memoryview(data)[written:])
        self._spool.disk.wrote(self._path, len(data))
        self._digest.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Hex digest of all that was written."""
        return self._digest.hexdigest()

    def keep(self) -> Deferred[None]:
        """Fires when the audio would survive a loss of power."""

        def work() -> None:
            with _disk_errors(), self._file:
                os.fsync(self._file.fileno())
                sync_directory(self._spool.directory)

        return self._spool.inThread(work)

    def discard(self) -> None:
        """Delete what was written; what cannot be is left to :meth:`Spool.drop_again`."""
        with suppress(OSError):
            # What it could not write is not wanted any more.
            self._file.close()
        with suppress(Undeleted):
            self._spool.delete(self._path, self._spool.windows_path(self.key))


class _disk_errors:
    """What is scarce for now is something that the client can wait for."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, OSError) and error.errno in _SCARCE:
            raise Busy(_SCARCE[error.errno], RETRY_FULL_DISK) from error


class Spool:
    """A private directory of transcripts' files.

    :param directory: is made where it is not there, and readable by its user only.
    :param threads: where the waiting for the disk is done.
    :param monotonic: seconds of a clock that never jumps.
    :ivar disk: how much it may take.
    """

    _log = Logger()

    def __init__(
        self,
        directory: Path,
        reactor: IReactorThreads,
        threads: ThreadPool,
        disk: Disk,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self.disk = disk
        self._reactor = reactor
        self._threads = threads
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        # What is kept in it must not be lost with its own name.
        sync_directory(directory.parent)
        # Not directories: lost+found is one where a file system of its own is mounted here.
        self._found = [path for path in directory.iterdir() if not path.is_dir()]
        disk.open(directory, self._found)
        self._locks: dict[str, DeferredLock] = {}
        self._monotonic = monotonic
        # What is still to be deleted, and when it may be said once more that it cannot be.
        self._undeleted: dict[Path, float] = {}

    def inThread(self, work: Callable[[], T]) -> Deferred[T]:
        """Run `work` where it may wait for the disk."""
        return deferToThreadPool(self._reactor, self._threads, work)

    def _inOrder(self, key: str, work: Callable[[], T]) -> Deferred[T]:
        """As :meth:`inThread`, after what was asked before of the same transcript's files.

        So a text that is being written is there, and goes, when it is deleted.
        """
        lock = self._locks.setdefault(key, DeferredLock())

        def unused(result: object) -> object:
            if not lock.locked and self._locks.get(key) is lock:
                del self._locks[key]
            return result

        done: Deferred[T] = lock.run(self.inThread, work)
        done.addBoth(unused)
        return done

    def _path(self, key: str, suffix: str) -> Path:
        return self.directory / (key + suffix)

    def audio_path(self, key: str) -> Path:
        """Where a recording's audio is."""
        return self._path(key, AUDIO)

    def windows_path(self, key: str) -> Path:
        """Where the results of a recording's windows are, a line each."""
        return self._path(key, WINDOWS)

    def take_in(self, key: str) -> Intake:
        """Start a new recording; raises :exc:`Busy` when the disk, or the quota, is full."""
        self.disk.claim(0)
        return Intake(self, key)

    def recover(self, key: str, size: int) -> Deferred[list[StoredWindow] | None]:
        """What is there of a recording of `size` bytes: its windows' results, in any order.

        None when its audio is not there, or not whole.
        """

        def work() -> list[StoredWindow] | None:
            try:
                if self.audio_path(key).stat().st_size != size:
                    return None
            except FileNotFoundError:
                return None
            with open(self.windows_path(key), "a+b", opener=private) as file:
                file.seek(0)
                return _read_windows(file.read())

        return self._inOrder(key, work)

    def keep_window(self, key: str, window: StoredWindow) -> Deferred[None]:
        """Add a window's result, unless the recording is deleted already.

        Not synced to disk: what is lost with the power is transcribed once more.
        """

        def work() -> None:
            try:
                # Without O_CREAT: a deleted recording must not come back.
                descriptor = os.open(self.windows_path(key), os.O_WRONLY | os.O_APPEND)
            except FileNotFoundError:
                return
            try:
                # The newline comes first, so that a line that was torn does not spoil this one.
                os.write(descriptor, b"\n" + msgspec.json.encode(window))
            finally:
                os.close(descriptor)

        return self._inOrder(key, work)

    def keep_text(self, key: str, transcription: Transcription) -> Deferred[bool]:
        """Fires when the text would survive a loss of power; keeps none of a deleted recording.

        Answers whether it was kept.
        """

        def work() -> bool:
            if not self.audio_path(key).exists():
                return False
            path = self._path(key, TEXT)
            data = msgspec.json.encode(transcription)
            # It may be there already, and be promised: where it was not known whether that was
            # stored, it is written once more.
            with written(path) as file:
                file.write(data)
            # What was there before is gone.
            self.disk.deleted(path)
            self.disk.wrote(path, len(data))
            return True

        return self._inOrder(key, work)

    def read_text(self, key: str) -> Deferred[Transcription | None]:
        """The text; None when it is deleted."""

        def work() -> Transcription | None:
            try:
                data = self._path(key, TEXT).read_bytes()
            except FileNotFoundError:
                return None
            return msgspec.json.decode(data, type=Transcription)

        return self._inOrder(key, work)

    def drop_audio(self, key: str) -> Deferred[None]:
        """Delete what is not needed once the outcome is known: audio and window results.

        Fails with :exc:`Undeleted` when some of it could not be: what could is gone all the same.
        """
        return self._unlink(key, AUDIO, WINDOWS)

    def drop(self, key: str) -> Deferred[None]:
        """Delete all that there is of a transcript; fails as :meth:`drop_audio` does."""
        return self._unlink(key, AUDIO, WINDOWS, TEXT)

    def _unlink(self, key: str, *suffixes: str) -> Deferred[None]:
        paths = [self._path(key, suffix) for suffix in suffixes]
        # Until it is done: what cannot be deleted now is deleted by drop_again.
        for path in paths:
            self._undeleted.setdefault(path, 0.0)
        return self._inOrder(key, lambda: self.delete(*paths))

    def delete(self, *paths: Path) -> None:
        """Delete files, each whatever becomes of the others.

        Raises :exc:`Undeleted` when one could not be: it is left to :meth:`drop_again`.
        """
        failed: OSError | None = None
        for path in paths:
            try:
                self._delete(path)
            except OSError as e:
                self._remember(path, e)
                failed = e
        if failed is not None:
            raise Undeleted(*failed.args) from failed

    def _delete(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.disk.deleted(path)
        self._undeleted.pop(path, None)

    def _remember(self, path: Path, error: OSError) -> None:
        now, say_at = self._monotonic(), self._undeleted.get(path, 0.0)
        if now >= say_at:
            self._log.error("{path} cannot be deleted: {error}", path=path, error=error)
            say_at = now + SAY_EVERY
        self._undeleted[path] = say_at

    def leaves(self, key: str) -> bool:
        """Whether something of a transcript is still to be deleted."""
        return any(self._path(key, suffix) in self._undeleted for suffix in (AUDIO, WINDOWS, TEXT))

    def drop_again(self) -> Deferred[None]:
        """Delete what should have been deleted already and could not be.

        Fails with :exc:`Undeleted` when some of it still cannot be.
        """

        def work() -> None:
            self.delete(*list(self._undeleted))

        return self.inThread(work) if self._undeleted else succeed(None)

    def sweep(self, live: Mapping[str, State]) -> Deferred[int]:
        """Delete what an earlier daemon left and no transcript in `live` has a use for.

        Looks at the files that were there when the spool was opened, and must have come to its end
        before any of these transcripts is worked on; where it failed, it may be called again.
        Answers how many it deleted. What cannot be deleted is left to :meth:`drop_again`.
        """
        uses = {AUDIO: UNFINISHED, WINDOWS: UNFINISHED, TEXT: FINISHED}

        def work() -> int:
            swept = 0
            for path in self._found:
                state = live.get(path.stem)
                if state in uses.get(path.suffix, ()):
                    continue
                try:
                    self._delete(path)
                    swept += 1
                except OSError as e:
                    self._remember(path, e)
                    if path.suffix == TEXT and state in UNFINISHED:
                        # There will be a text of that name, which must not be deleted.
                        del self._undeleted[path]
            self._found = []
            return swept

        return self.inThread(work)


def _read_windows(data: bytes) -> list[StoredWindow]:
    windows = []
    for line in data.splitlines():
        try:
            windows.append(msgspec.json.decode(line, type=StoredWindow))
        except (msgspec.DecodeError, UnicodeDecodeError):
            # The last line can be torn by a crash: that window is transcribed once more.
            continue
    return windows
