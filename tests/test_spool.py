"""The spool on a real directory: what is on disk when, what is left, and what a full disk does."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.fakes import ImmediateSpool
from transcribed.disk import RETRY_FULL_DISK, Disk
from transcribed.errors import Busy
from transcribed.recognition import CTCResult, Run, StoredWindow, Transcription, Word, WordsResult
from transcribed.spool import Intake, Spool
from transcribed.transcript import State

TEXT = Transcription("hej då", [Word("hej", 0.0, 0.5, 0.75), Word("då", 0.5, 1.0, 1.0)])
FULL = (errno.ENOSPC, errno.EDQUOT)


def window(position: int, word: str = "hej", model: str = "digest") -> StoredWindow:
    return StoredWindow(model, position, WordsResult([Word(word, 0.0, 1.0, 1.0)]))


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


def raising(code: int) -> Callable[..., Any]:
    """Something to call that fails as the system does with `code`."""

    def fail(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


class Grudging(io.RawIOBase):
    """A file that takes three bytes at a time, and then fails with `code` once it has `room`."""

    def __init__(self, room: int, code: int) -> None:
        super().__init__()
        self.taken = b""
        self.room = room
        self.code = code

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if len(self.taken) >= self.room:
            raise OSError(self.code, os.strerror(self.code))
        piece = bytes(data[: min(3, self.room - len(self.taken))])
        self.taken += piece
        return len(piece)


class SpoolTestCase(SynchronousTestCase):
    """Has a spool that answers at once, in a directory of its own."""

    def setUp(self) -> None:
        self.addCleanup(os.umask, os.umask(0))
        self.directory = Path(self.mktemp()) / "spool"
        self.spool = ImmediateSpool(self.directory)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())

    def take_in(self, key: str = "k1", data: bytes = b"\1\0" * 8) -> Intake:
        intake = self.spool.take_in(key)
        self.addCleanup(intake._file.close)
        intake.write(data)
        return intake

    def kept(self, key: str = "k1", data: bytes = b"\1\0" * 8) -> Intake:
        intake = self.take_in(key, data)
        self.successResultOf(intake.keep())
        return intake

    def recovered(self, key: str = "k1", size: int = 16) -> list[StoredWindow] | None:
        return self.successResultOf(self.spool.recover(key, size))

    def keep_windows(self, *windows: StoredWindow, key: str = "k1") -> None:
        for each in windows:
            self.successResultOf(self.spool.keep_window(key, each))


class PrivacyTests(SpoolTestCase):
    """Names and modes."""

    def test_directoryIsTheUsersOnly(self) -> None:
        self.assertEqual(mode(self.directory), "0o700")

    def test_directoryThatWasOpenIsClosed(self) -> None:
        self.directory.chmod(0o755)
        ImmediateSpool(self.directory)
        self.assertEqual(mode(self.directory), "0o700")

    def test_filesAreNamedByKeyAndTheUsersOnly(self) -> None:
        self.kept()
        self.keep_windows(window(0))
        self.successResultOf(self.spool.keep_text("k1", TEXT))
        self.take_in("k2")
        names = ("k1.audio", "k1.windows", "k1.text", "k2.audio", "k2.windows")
        self.assertEqual(
            {path.name: mode(path) for path in self.directory.iterdir()},
            dict.fromkeys(names, "0o600"),
        )

    def test_windowsFileMadeByRecoverIsTheUsersOnly(self) -> None:
        self.kept()
        self.spool.windows_path("k1").unlink()
        self.assertEqual(self.recovered(), [])
        self.assertEqual(mode(self.spool.windows_path("k1")), "0o600")


class IntakeTests(SpoolTestCase):
    """Audio on its way in."""

    def test_bytesSizeAndDigest(self) -> None:
        intake = self.spool.take_in("k1")
        self.assertEqual((intake.size, intake.sha256), (0, hashlib.sha256().hexdigest()))
        pieces = [b"\0", b"\1\2\3", b"", b"\xff" * 5000]
        for piece in pieces:
            intake.write(piece)
        data = b"".join(pieces)
        self.assertEqual(intake.size, len(data))
        self.assertEqual(intake.sha256, hashlib.sha256(data).hexdigest())
        # Unbuffered: it is the system's as soon as it is written.
        self.assertEqual(self.spool.audio_path("k1").read_bytes(), data)
        self.successResultOf(intake.keep())
        self.assertEqual(self.spool.audio_path("k1").read_bytes(), data)

    def test_noSecondOneOfTheSameKey(self) -> None:
        self.take_in()
        self.assertRaises(FileExistsError, self.spool.take_in, "k1")
        self.assertEqual(self.spool.audio_path("k1").stat().st_size, 16)

    def test_keepSyncsTheFileThenTheDirectory(self) -> None:
        synced: list[tuple[Path, list[str]]] = []
        fsync = os.fsync

        def observed(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            synced.append((path, self.files()))
            fsync(descriptor)

        self.patch(os, "fsync", observed)
        intake = self.take_in()
        self.assertEqual(synced, [])
        self.successResultOf(intake.keep())
        directory = self.directory.resolve()
        self.assertEqual([path for path, _ in synced], [directory / "k1.audio", directory])
        # Both names are there when the directory is synced.
        self.assertEqual(synced[-1][1], ["k1.audio", "k1.windows"])
        self.assertTrue(intake._file.closed)

    def test_spoolSyncsItsOwnName(self) -> None:
        synced: list[str] = []
        self.patch(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
        ImmediateSpool(self.directory)
        self.assertEqual(synced, [str(self.directory.parent.resolve())])

    def test_discardLeavesNothing(self) -> None:
        intake = self.take_in()
        intake.discard()
        self.assertEqual(self.files(), [])
        self.assertTrue(intake._file.closed)
        intake.discard()

    def test_windowsAreKeptWhileItComesIn(self) -> None:
        intake = self.take_in()
        self.keep_windows(window(0), window(1))
        intake.write(b"\1\0")
        self.successResultOf(intake.keep())
        self.assertEqual(self.recovered(size=18), [window(0), window(1)])

    def test_discardTakesTheWindows(self) -> None:
        intake = self.take_in()
        self.keep_windows(window(0))
        intake.discard()
        self.keep_windows(window(1))
        self.assertEqual(self.files(), [])

    def test_discardAfterKeepLeavesNothing(self) -> None:
        self.kept().discard()
        self.assertEqual(self.files(), [])

    def test_discardLeavesOthers(self) -> None:
        self.kept("k2")
        self.take_in("k1").discard()
        self.assertEqual(self.files(), ["k2.audio", "k2.windows"])


class FullDiskTests(SpoolTestCase):
    """A full disk, or quota, is something the client can wait for."""

    def assertBusy(self, error: Busy) -> None:
        self.assertEqual(error.retry_after, RETRY_FULL_DISK)
        self.assertGreater(error.retry_after, 0)
        self.assertIn("disk", error.reason)

    def test_atCreation(self) -> None:
        for code in FULL:
            with self.runningOn("open", code):
                self.assertBusy(self.assertRaises(Busy, self.spool.take_in, "k1"))
        self.assertEqual(self.files(), [])

    def test_atCreationOfTheSecondFile(self) -> None:
        for code in (*FULL, errno.EMFILE):
            with self.runningOn("open", code, ".windows"):
                error = self.assertRaises(Busy, self.spool.take_in, "k1")
            self.assertEqual(error.retry_after, RETRY_FULL_DISK)
            self.assertEqual(self.files(), [])

    def runningOn(self, call: str, code: int, suffix: str = "") -> Any:
        """Within it, ``os.call`` fails with `code`, for paths with that suffix."""
        test = self
        real = getattr(os, call)

        def fail(first: Any, *rest: Any, **more: Any) -> Any:
            if not str(first).endswith(suffix):
                return real(first, *rest, **more)
            raise OSError(code, os.strerror(code))

        class Running:
            def __enter__(self) -> None:
                self.patch = test.patch(os, call, fail)

            def __exit__(self, *_: object) -> None:
                self.patch.restore()

        return Running()

    def test_atAWrite(self) -> None:
        for code in FULL:
            intake = self.take_in()
            intake._file.close()
            intake._file = Grudging(10, code)  # type: ignore[assignment]
            before = intake.size
            self.assertBusy(self.assertRaises(Busy, intake.write, b"x" * 100))
            self.assertEqual(intake.size, before)
            intake.discard()
            self.assertEqual(self.files(), [])

    def test_atAWriteToADeviceThatIsFull(self) -> None:
        intake = self.take_in()
        intake._file.close()
        intake._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        self.assertBusy(self.assertRaises(Busy, intake.write, b"x"))
        intake.discard()
        self.assertEqual(self.files(), [])

    def test_shortWritesAreCarriedOn(self) -> None:
        intake = self.spool.take_in("k1")
        intake._file.close()
        intake._file = file = Grudging(100, errno.ENOSPC)  # type: ignore[assignment]
        intake.write(b"0123456789")
        self.assertEqual(file.taken, b"0123456789")
        self.assertEqual(intake.sha256, hashlib.sha256(b"0123456789").hexdigest())

    def test_inKeep(self) -> None:
        for code in FULL:
            for call in ("fsync", "open"):
                intake = self.take_in()
                with self.runningOn(call, code):
                    failure = self.failureResultOf(intake.keep(), Busy)
                self.assertBusy(failure.value)
                intake.discard()
                self.assertEqual(self.files(), [])

    def test_otherErrorsAreThemselves(self) -> None:
        with self.runningOn("open", errno.EACCES):
            self.assertRaises(PermissionError, self.spool.take_in, "k1")
        intake = self.take_in()
        with self.runningOn("fsync", errno.EIO):
            failure = self.failureResultOf(intake.keep(), OSError)
        self.assertEqual(failure.value.errno, errno.EIO)

    def test_textOnAFullDisk(self) -> None:
        self.kept()
        with self.runningOn("fsync", errno.ENOSPC):
            self.failureResultOf(self.spool.keep_text("k1", TEXT), OSError)
        self.assertEqual(self.files(), ["k1.audio", "k1.windows"])
        self.successResultOf(self.spool.keep_text("k1", TEXT))
        self.assertEqual(self.successResultOf(self.spool.read_text("k1")), TEXT)

    def test_aTextThatIsPromisedIsNotSpoiledByAnotherTry(self) -> None:
        """Its row may say that it is ready, where nobody heard the answer."""
        self.kept()
        self.successResultOf(self.spool.keep_text("k1", TEXT))
        with self.runningOn("fsync", errno.EIO):
            self.failureResultOf(self.spool.keep_text("k1", Transcription("", [])), OSError)
        self.assertEqual(self.successResultOf(self.spool.read_text("k1")), TEXT)
        self.assertNotIn("k1.text.part", self.files())


class WindowTests(SpoolTestCase):
    """Window results, and what is recovered."""

    def test_roundTrip(self) -> None:
        self.kept()
        windows = [
            window(3),
            window(0, "två\nrader \u2028\r", "other"),
            StoredWindow("d", 1, CTCResult(0.02, "|", [Run("å", 5, 2, 0.5), Run("|", 7, 1, 1.0)])),
        ]
        self.keep_windows(*windows)
        self.assertEqual(self.recovered(), windows)

    def test_noneYet(self) -> None:
        self.kept()
        self.assertEqual(self.recovered(), [])

    def test_deletedRecordingDoesNotComeBack(self) -> None:
        self.kept()
        self.successResultOf(self.spool.drop("k1"))
        self.keep_windows(window(0))
        self.keep_windows(window(0), key="never-there")
        self.assertEqual(self.files(), [])

    def test_tornLastLineIsLeftOut(self) -> None:
        self.kept()
        self.keep_windows(window(0, "å\U0001f600"))
        path = self.spool.windows_path("k1")
        one = path.read_bytes()
        self.keep_windows(window(1, "å\U0001f600"))
        both = path.read_bytes()
        for size in range(len(one), len(both)):
            path.write_bytes(both[:size])
            self.assertEqual(self.recovered(), [window(0, "å\U0001f600")], size)
        path.write_bytes(both)
        self.assertEqual(len(self.recovered() or []), 2)

    def test_tornLineDoesNotSpoilTheNext(self) -> None:
        self.kept()
        self.keep_windows(window(0), window(1, "å\U0001f600"))
        path = self.spool.windows_path("k1")
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            before = self.recovered()
            assert before is not None
            self.keep_windows(window(2))
            self.assertEqual(self.recovered(), [*before, window(2)], size)

    def test_rubbishIsLeftOut(self) -> None:
        self.kept()
        self.keep_windows(window(0))
        with open(self.spool.windows_path("k1"), "ab") as file:
            file.write(b'\n\0\0\0\n\xff\xfe\n{}\n[]\nnull\n{"model":"\xff","position":0}')
        self.keep_windows(window(1))
        self.assertEqual(self.recovered(), [window(0), window(1)])

    def test_audioMissing(self) -> None:
        self.assertIs(self.recovered("never-there"), None)
        self.kept()
        self.spool.audio_path("k1").unlink()
        self.assertIs(self.recovered(), None)

    def test_audioOfAnotherSize(self) -> None:
        self.kept()
        for size in (0, 15, 17, 32):
            self.assertIs(self.recovered(size=size), None)
        self.assertEqual(self.recovered(size=16), [])

    def test_windowsCanBeKeptAfterTheirFileWasLost(self) -> None:
        self.kept()
        self.spool.windows_path("k1").unlink()
        self.assertEqual(self.recovered(), [])
        self.keep_windows(window(0))
        self.assertEqual(self.recovered(), [window(0)])


class TextTests(SpoolTestCase):
    """The text."""

    def test_roundTrip(self) -> None:
        self.kept("k1")
        for text in (TEXT, Transcription("", []), Transcription("\0\n\U0001f600", [])):
            self.successResultOf(self.spool.keep_text("k1", text))
            self.assertEqual(self.successResultOf(self.spool.read_text("k1")), text)

    def test_aDeletedRecordingGetsNone(self) -> None:
        self.kept("k1")
        self.successResultOf(self.spool.drop("k1"))
        self.assertFalse(self.successResultOf(self.spool.keep_text("k1", TEXT)))
        self.assertEqual(self.files(), [])

    def test_missing(self) -> None:
        self.assertIs(self.successResultOf(self.spool.read_text("k1")), None)

    def test_syncsTheFileThenTheDirectory(self) -> None:
        self.kept("k1")
        synced: list[str] = []
        sizes: list[int] = []

        def observed(descriptor: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            sizes.append(os.fstat(descriptor).st_size)

        self.patch(os, "fsync", observed)
        self.successResultOf(self.spool.keep_text("k1", TEXT))
        directory = self.directory.resolve()
        self.assertEqual(synced, [str(directory / "k1.text.part"), str(directory)])
        # Its bytes were the system's before.
        self.assertEqual(sizes[0], (directory / "k1.text").stat().st_size)
        self.assertGreater(sizes[0], 0)


class DropTests(SpoolTestCase):
    """Deleting."""

    def setUp(self) -> None:
        super().setUp()
        for key in ("k1", "k2"):
            self.kept(key)
            self.keep_windows(window(0), key=key)
            self.successResultOf(self.spool.keep_text(key, TEXT))

    def test_dropAudioLeavesTheText(self) -> None:
        self.successResultOf(self.spool.drop_audio("k1"))
        self.assertEqual(self.files(), ["k1.text", "k2.audio", "k2.text", "k2.windows"])
        self.assertEqual(self.successResultOf(self.spool.read_text("k1")), TEXT)

    def test_drop(self) -> None:
        self.successResultOf(self.spool.drop("k1"))
        self.assertEqual(self.files(), ["k2.audio", "k2.text", "k2.windows"])
        self.assertIs(self.successResultOf(self.spool.read_text("k1")), None)
        self.assertIs(self.recovered(), None)

    def test_twiceIsHarmless(self) -> None:
        for _ in range(2):
            self.successResultOf(self.spool.drop_audio("k1"))
            self.successResultOf(self.spool.drop("k1"))


class SweepTests(SpoolTestCase):
    """What an earlier daemon left."""

    def leave(self, *keys: str) -> None:
        for key in keys:
            self.kept(key)
            self.successResultOf(self.spool.keep_text(key, TEXT))

    def sweep(self, live: dict[str, State]) -> int:
        return self.successResultOf(self.spool.sweep(live))

    def test_orphans(self) -> None:
        self.leave("k1", "k2")
        (self.directory / "stray").touch()
        (self.directory / "k2.text.part").touch()
        self.spool = ImmediateSpool(self.directory)
        self.assertEqual(self.sweep({"k2": State.QUEUED}), 6)
        self.assertEqual(self.files(), ["k2.audio", "k2.windows"])

    def test_outOfPlaceForTheState(self) -> None:
        self.leave(*State)
        self.spool = ImmediateSpool(self.directory)
        self.sweep({state.value: state for state in State})
        self.assertEqual(
            self.files(),
            sorted(
                [
                    *("queued.audio", "queued.windows"),
                    *("transcribing.audio", "transcribing.windows"),
                    *("ready.text", "failed.text"),
                ]
            ),
        )

    def test_neverWhatWasTakenInAfterTheSpoolWasOpened(self) -> None:
        self.leave("old")
        self.spool = ImmediateSpool(self.directory)
        self.kept("new")
        self.take_in("newer")
        self.successResultOf(self.spool.keep_text("new", TEXT))
        self.assertEqual(self.sweep({}), 3)
        self.assertEqual(
            self.files(),
            [*("new.audio", "new.text", "new.windows"), *("newer.audio", "newer.windows")],
        )

    def test_nothingToSweep(self) -> None:
        self.assertEqual(self.sweep({"k1": State.READY}), 0)

    def test_whatWentMeanwhile(self) -> None:
        self.leave("k1")
        self.spool = ImmediateSpool(self.directory)
        self.successResultOf(self.spool.drop("k1"))
        self.sweep({})
        self.assertEqual(self.files(), [])

    def test_aTextThatIsWrittenAnewIsNotDeletedLater(self) -> None:
        """It was left beside a recording that is not done, and could not be deleted then."""
        self.leave("k1", "k2")
        self.spool = ImmediateSpool(self.directory)
        patch = self.patch(Path, "unlink", raising(errno.EIO))
        self.assertEqual(self.sweep({"k1": State.TRANSCRIBING}), 0)
        patch.restore()
        self.successResultOf(self.spool.keep_text("k1", TEXT))
        self.successResultOf(self.spool.drop_again())
        self.assertEqual(self.files(), ["k1.audio", "k1.text", "k1.windows"])

    def test_whatFailedIsSweptLater(self) -> None:
        self.leave("k1")
        self.spool = ImmediateSpool(self.directory)
        self.spool.broken = OSError(errno.EIO, "input/output error")
        self.failureResultOf(self.spool.sweep({}), OSError)
        self.spool.broken = None
        self.kept("new")
        self.assertEqual(self.sweep({}), 3)
        self.assertEqual(self.files(), ["new.audio", "new.windows"])

    def test_directoriesAreLeftAlone(self) -> None:
        # As lost+found is, where a file system of its own is mounted here.
        (self.directory / "lost+found").mkdir()
        self.leave("k1")
        self.spool = ImmediateSpool(self.directory)
        self.assertEqual(self.sweep({}), 3)
        self.assertEqual(self.files(), ["lost+found"])


class ThreadedTests(TestCase):
    """The real spool, over real threads."""

    timeout = 30

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.threads = ThreadPool(0, 4, "disk")
        self.threads.start()
        self.addCleanup(self.threads.stop)
        self.directory = Path(self.mktemp())
        self.spool = Spool(self.directory, reactor, self.threads, Disk())  # type: ignore[arg-type]

    def test_aRecordingsLife(self) -> Deferred[None]:
        async def work() -> None:
            intake = self.spool.take_in("k1")
            intake.write(b"\1\0" * 8)
            await intake.keep()
            await gatherResults([self.spool.keep_window("k1", window(i)) for i in range(20)])
            windows = await self.spool.recover("k1", 16)
            assert windows is not None
            self.assertEqual(
                sorted(windows, key=lambda w: w.position), [window(i) for i in range(20)]
            )
            await self.spool.keep_text("k1", TEXT)
            await self.spool.drop_audio("k1")
            self.assertEqual(await self.spool.read_text("k1"), TEXT)
            self.assertIs(await self.spool.recover("k1", 16), None)
            await self.spool.drop("k1")
            self.assertIs(await self.spool.read_text("k1"), None)
            self.assertEqual(list(self.directory.iterdir()), [])

        return Deferred.fromCoroutine(work())

    def test_keepDoesNotHoldUpTheReactor(self) -> Deferred[None]:
        seen: list[threading.Thread] = []
        self.patch(os, "fsync", lambda _: seen.append(threading.current_thread()))

        async def work() -> None:
            intake = self.spool.take_in("k1")
            intake.write(b"\1\0")
            await intake.keep()
            self.assertEqual(len(seen), 2)
            self.assertNotIn(threading.current_thread(), seen)

        return Deferred.fromCoroutine(work())

    def test_fullDisk(self) -> Deferred[None]:
        async def work() -> None:
            intake = self.spool.take_in("k1")
            intake.write(b"\1\0")
            self.patch(os, "fsync", raising(errno.ENOSPC))
            try:
                await intake.keep()
            except Busy as e:
                self.assertEqual(e.retry_after, RETRY_FULL_DISK)
            else:
                self.fail("it was kept")
            intake.discard()
            self.assertEqual(list(self.directory.iterdir()), [])

        return Deferred.fromCoroutine(work())
