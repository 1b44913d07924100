"""Backups: what is in them while the daemon goes on, what is not, and starting from one."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
from click.testing import CliRunner, Result
from twisted.internet import reactor
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.daemonprocess import DaemonProcess, submit
from tests.rawclient import RawClient
from tests.speech import CHECKPOINT, STEADY, clip, recording, texts
from tests.storagecase import EXPIRES, transcript
from transcribed import backup, task
from transcribed.admin import cli
from transcribed.recognition import Transcription
from transcribed.storage._base import COLUMNS, _to_row
from transcribed.storage.sqlite import SQLiteStore
from transcribed.transcript import State

AUDIO = bytes(range(256)) * 4
TEXT = msgspec.json.encode(Transcription(text="hej", words=[]))


class StateCase(SynchronousTestCase):
    """A state directory, and what a daemon does to it."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.state = self.folder / "state"
        self.spool = self.state / "spool"
        self.spool.mkdir(parents=True)
        SQLiteStore.prepare(self.state / "transcripts.sqlite")
        # Held open as by a daemon, so that what is committed stays in the log beside the file.
        self.database = sqlite3.connect(self.state / "transcripts.sqlite")
        self.addCleanup(self.database.close)
        self.file = self.folder / "backup.tar"

    def accept(self, key: str, state: State = State.QUEUED, **fields: Any) -> None:
        """Take a recording in."""
        self.write(f"{key}.audio", AUDIO)
        self.write(f"{key}.windows", b"\n{}")
        frames = len(AUDIO) // 2
        row = _to_row(transcript(key, id=f"m-{key}", frames=frames, state=state, **fields), COLUMNS)
        self.database.execute(f"INSERT INTO transcripts VALUES ({', '.join('?' * len(row))})", row)
        self.database.commit()

    def finish(self, key: str) -> None:
        """Its text is there, so its audio goes."""
        self.write(f"{key}.text", TEXT)
        self.move(key, State.READY)
        (self.spool / f"{key}.audio").unlink()
        (self.spool / f"{key}.windows").unlink()

    def purge(self, key: str) -> None:
        """Its sides have its text."""
        self.move(key, State.PURGED)
        (self.spool / f"{key}.text").unlink()

    def write(self, name: str, content: bytes) -> None:
        (self.spool / name).write_bytes(content)

    def move(self, key: str, state: State) -> None:
        forget = None if state in (State.READY, State.FAILED) else EXPIRES
        self.database.execute(
            "UPDATE transcripts SET state = ?, forget = ? WHERE key = ?", (state, forget, key)
        )
        self.database.commit()

    def back_up(self) -> backup.Backup:
        return backup.back_up(self.state, self.file)

    def restored(self) -> dict[str, str]:
        """Unpack the backup; the states of its transcripts that have not ended, by key.

        What each needs must be there.
        """
        new = self.folder / "new"
        shutil.rmtree(new, ignore_errors=True)
        with tarfile.open(self.file) as tar:
            tar.extractall(new, filter="data")
        path = new / "transcripts.sqlite"
        SQLiteStore.prepare(path)
        with closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT key, state FROM transcripts WHERE forget IS NULL")
            found = dict(rows.fetchall())
        for key, state in found.items():
            if state in ("queued", "transcribing"):
                self.assertEqual((new / "spool" / f"{key}.audio").read_bytes(), AUDIO)
            elif state == "ready":
                self.assertEqual((new / "spool" / f"{key}.text").read_bytes(), TEXT)
        return found

    def members(self) -> dict[str, str]:
        """The names in the backup, in order, with their modes."""
        with tarfile.open(self.file) as tar:
            return {member.name: oct(member.mode) for member in tar}

    def assertNothingLeft(self) -> None:
        """Neither a backup nor half of one, anywhere."""
        self.assertEqual([path.name for path in self.folder.iterdir()], ["state"])


class ContentTests(StateCase):
    """A daemon that is idle."""

    def test_whatIsNeeded(self) -> None:
        self.accept("k1")
        self.accept("k2", State.TRANSCRIBING)
        for key in ("k3", "k4"):
            self.accept(key)
            self.finish(key)
        self.purge("k4")
        self.accept("k5")
        self.move("k5", State.FAILED)
        self.write("k6.audio", b"an upload that is not accepted yet")
        (self.state / "models").mkdir()
        (self.state / "lock").touch()
        made = self.back_up()
        self.assertEqual((made.transcripts, made.lost), (3, []))
        self.assertEqual(made.size, self.file.stat().st_size)
        names = [f"k{n}.{kind}" for n in (1, 2) for kind in ("audio", "windows")]
        self.assertEqual(
            self.members(),
            {
                "spool": "0o700",
                **{f"spool/{name}": "0o600" for name in (*names, "k3.text")},
                "transcripts.sqlite": "0o600",
            },
        )
        self.assertEqual(
            self.restored(),
            {"k1": "queued", "k2": "transcribing", "k3": "ready", "k5": "failed"},
        )

    def test_private(self) -> None:
        self.addCleanup(os.umask, os.umask(0))
        self.back_up()
        self.assertEqual(stat.S_IMODE(self.file.stat().st_mode), 0o600)
        self.assertEqual(self.restored(), {})

    def test_theStateDirectoryIsAsItWas(self) -> None:
        self.accept("k1")

        def content() -> dict[Path, bytes]:
            return {
                path: path.read_bytes()
                for path in self.state.rglob("*")
                if path.is_file() and not path.name.endswith("-shm")
            }

        before = content()
        self.back_up()
        self.assertEqual(content(), before)
        self.assertEqual({path.stat().st_nlink for path in self.spool.iterdir()}, {1})

    def test_afterTheDaemonHasStopped(self) -> None:
        self.accept("k1")
        self.database.close()
        self.assertFalse((self.state / "transcripts.sqlite-wal").exists())
        self.back_up()
        self.assertEqual(self.restored(), {"k1": "queued"})


class MovingTests(StateCase):
    """The daemon goes on between the copy of the database and the copies of the files."""

    def meanwhile(self, *steps: Callable[[], None]) -> None:
        """Have each of `steps` happen right before the next file is added."""
        add = backup._add
        todo = list(steps)

        def adding(*arguments: Any) -> bool:
            if todo:
                todo.pop(0)()
            return add(*arguments)

        self.patch(backup, "_add", adding)
        self.addCleanup(lambda: self.assertEqual(todo, []))

    def test_finishedMeanwhile(self) -> None:
        self.accept("k1")
        self.accept("k2")
        self.meanwhile(lambda: self.finish("k1"), lambda: self.finish("k2"))
        made = self.back_up()
        self.assertEqual((made.transcripts, made.lost), (2, []))
        self.assertEqual(self.restored(), {"k1": "ready", "k2": "ready"})

    def test_finishedAfterItsAudioWasCopied(self) -> None:
        """What was true at one moment is as good as what is true now."""
        self.accept("k1")
        self.accept("k2")
        self.meanwhile(lambda: None, lambda: self.finish("k1"))
        self.back_up()
        self.assertEqual(self.restored(), {"k1": "queued", "k2": "queued"})

    def test_purgedMeanwhile(self) -> None:
        self.accept("k1")
        self.finish("k1")
        self.accept("k2")
        self.meanwhile(lambda: self.purge("k1"), lambda: self.accept("k3"))
        made = self.back_up()
        self.assertEqual(made.lost, [])
        self.assertEqual(self.restored(), {"k2": "queued", "k3": "queued"})

    def test_allAtOnce(self) -> None:
        """Each file that is looked for sees another one finished, purged and accepted."""
        keys = [f"k{number}" for number in range(30)]
        for key in keys[:10]:
            self.accept(key)
        steps: list[Callable[[], None]] = []
        for old, new in zip(keys, keys[10:], strict=False):
            steps += [
                lambda key=old: self.finish(key),  # type: ignore[misc]
                lambda key=new: self.accept(key),  # type: ignore[misc]
                lambda key=old: self.purge(key),  # type: ignore[misc]
            ]
        self.meanwhile(*steps[:20])
        self.assertEqual(self.back_up().lost, [])
        self.assertGreater(len(self.restored()), 5)

    def test_neverStill(self) -> None:
        """Where each copy of the database is out of date at once, that is said in the end."""
        self.accept("k0")
        number = 0

        def churn(*arguments: Any) -> bool:
            nonlocal number
            self.finish(f"k{number}")
            self.purge(f"k{number}")
            number += 1
            self.accept(f"k{number}")
            return False

        self.patch(backup, "_add", churn)
        error = self.assertRaises(backup.BackupFailed, self.back_up)
        self.assertIn("try again later", str(error))
        self.assertEqual(number, backup.ROUNDS)
        self.assertNothingLeft()


class LossTests(StateCase):
    """What the state directory itself has lost is said, and the rest is backed up."""

    def test_lostAndDamaged(self) -> None:
        for number in range(5):
            self.accept(f"k{number}")
        for number in (3, 4):
            self.finish(f"k{number}")
        (self.spool / "k0.audio").unlink()
        self.write("k1.audio", AUDIO[:-1])
        self.write("k3.text", TEXT[:-1])
        made = self.back_up()
        self.assertEqual(made.lost, ["anna/m-k0", "anna/m-k1", "anna/m-k3"])
        self.assertEqual(made.transcripts, 5)
        names = ["k2.audio", "k2.windows", "k4.text"]
        self.assertEqual(
            sorted(self.members()), ["spool", *(f"spool/{n}" for n in names), "transcripts.sqlite"]
        )

    def test_withoutWindows(self) -> None:
        self.accept("k1")
        (self.spool / "k1.windows").unlink()
        self.assertEqual(self.back_up().lost, [])
        self.assertEqual(self.restored(), {"k1": "queued"})


class CommandTests(StateCase):
    """``transcribed backup``."""

    def invoke(self, *arguments: object) -> Result:
        with mock.patch("signal.signal"):
            return CliRunner().invoke(cli, ["backup", *map(str, arguments)])

    def assertRefused(self, result: Result, status: int, *words: str) -> None:
        self.assertEqual((result.exit_code, result.stdout), (status, ""))
        self.assertRegex(result.stderr, r"^transcribed: there is no backup: [^\n]+\n$")
        for word in words:
            self.assertIn(word, result.stderr)

    def test_says(self) -> None:
        self.accept("k1")
        self.accept("k2")
        (self.spool / "k2.audio").unlink()
        result = self.invoke(self.file, "--state", self.state)
        self.assertEqual(result.exit_code, 0)
        size = self.file.stat().st_size
        self.assertEqual(result.stdout, f"{self.file}: 2 transcripts, {size} bytes\n")
        self.assertEqual(
            result.stderr,
            "transcribed: warning: the state directory itself has lost the audio or text of"
            " anna/m-k2\n",
        )

    def test_noStateDirectory(self) -> None:
        for wrong in ("nothing", "empty", "half"):
            path = self.folder / wrong
            if wrong != "nothing":
                path.mkdir()
            if wrong == "half":
                shutil.copy(self.state / "transcripts.sqlite", path)
            result = self.invoke(self.file, "--state", path)
            self.assertRefused(result, task.UNREADABLE, str(path), "no state directory")
            self.assertFalse(self.file.exists())

    def test_emptyDatabase(self) -> None:
        path = self.folder / "empty"
        (path / "spool").mkdir(parents=True)
        (path / "transcripts.sqlite").touch()
        result = self.invoke(self.file, "--state", path)
        self.assertRefused(result, task.UNREADABLE, "has no transcripts")
        self.assertEqual(sorted(os.listdir(self.folder)), ["empty", "state"])

    def test_noDatabase(self) -> None:
        self.database.close()
        (self.state / "transcripts.sqlite").write_bytes(b"rubbish " * 1000)
        result = self.invoke(self.file, "--state", self.state)
        self.assertRefused(result, task.UNFORESEEN, "not a database")
        self.assertNothingLeft()

    def test_ofANewerVersion(self) -> None:
        self.database.execute("PRAGMA user_version = 99")
        result = self.invoke(self.file, "--state", self.state)
        self.assertRefused(result, task.UNFORESEEN, "version 99")
        self.assertNothingLeft()

    def test_notOverwritten(self) -> None:
        self.file.write_text("precious")
        result = self.invoke(self.file, "--state", self.state)
        self.assertRefused(result, task.UNFORESEEN, str(self.file), "is there already")
        self.assertEqual(self.file.read_text(), "precious")

    def test_notOverALinkOrALateComer(self) -> None:
        self.file.symlink_to(self.folder / "nowhere")
        result = self.invoke(self.file, "--state", self.state)
        self.assertRefused(result, task.UNFORESEEN, "is there already")
        self.file.unlink()
        self.accept("k1")
        add = backup._add

        def adding(*arguments: Any) -> bool:
            self.file.write_text("precious")
            return add(*arguments)

        self.patch(backup, "_add", adding)
        result = self.invoke(self.file, "--state", self.state)
        self.assertRefused(result, task.UNFORESEEN, "is there already")
        self.assertEqual(self.file.read_text(), "precious")
        self.assertEqual(sorted(os.listdir(self.folder)), ["backup.tar", "state"])

    def test_notIntoTheStateDirectory(self) -> None:
        for name in ("backup.tar", "spool/backup.tar"):
            result = self.invoke(self.state / name, "--state", self.state)
            self.assertRefused(result, task.UNFORESEEN, "in the state directory")

    def test_noSuchDirectory(self) -> None:
        result = self.invoke(self.folder / "no" / "backup.tar", "--state", self.state)
        self.assertRefused(result, task.UNFORESEEN, f"{self.folder}/no is no directory")

    def test_fullDisk(self) -> None:
        """As real as can be: the kernel writes so many bytes of a file, and no more."""
        for number in range(40):
            self.accept(f"k{number}")
        program = (
            "import resource\n"
            "from transcribed.admin import main\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
            "main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, "backup", self.file, "--state", self.state],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.assertEqual((done.returncode, done.stdout), (task.UNFORESEEN, ""))
        self.assertEqual(done.stderr, "transcribed: there is no backup: File too large\n")
        self.assertNothingLeft()

    def test_terminated(self) -> None:
        """SIGTERM in the middle leaves nothing."""
        self.accept("k1")
        program = (
            "import os, signal, threading\n"
            "from transcribed import admin, backup\n"
            "def add(*arguments):\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\n"
            "    threading.Event().wait()\n"
            "backup._add = add\n"
            "admin.main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, "backup", self.file, "--state", self.state],
            capture_output=True,
            timeout=50,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.assertEqual((done.returncode, done.stderr), (task.INTERRUPTED, b""))
        self.assertNothingLeft()


class DaemonTests(TestCase):
    """End to end: a real daemon with the tiny checkpoint, the real command, a second daemon."""

    timeout = 240

    async def test_restore(self) -> None:
        """What was ready can be fetched, and what was not finishes, from the backup alone."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        state, new, file = folder / "state", folder / "new", folder / "backup.tar"
        first = self.start(state)
        anna = await first.greet("anna")
        name, text = next(iter(texts().items()))
        for id in ("ready", "taken"):
            await submit(anna, id, clip(name).tobytes())
            self.assertEqual((await self.fetch(anna, id))["text"], text)
        self.assertTrue((await anna.ask(type="ack", id="taken"))["purged"])
        samples, long_text = recording(60, clips=STEADY)
        workers = first.workers()
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        await submit(anna, "long", samples.tobytes())
        out, err, code = await getProcessOutputAndValue(
            sys.executable,
            ["-c", _MAIN, "backup", str(file), "--state", str(state)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            reactor=reactor,
        )
        self.assertEqual((err, code), (b"", 0))
        self.assertIn(b": 2 transcripts, ", out)
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
        # The daemon has noticed nothing, and what it is given now is not in the backup.
        self.assertEqual((await self.fetch(anna, "long"))["text"], long_text)
        await submit(anna, "later", clip(name).tobytes())
        await first.signal("KILL")
        with tarfile.open(file) as tar:
            kinds = [Path(name).suffix for name in tar.getnames()]
            tar.extractall(new, filter="data")
        self.assertEqual(sorted(kinds), ["", ".audio", ".sqlite", ".text", ".windows"])
        # Else the model would be converted once more, which takes some seconds.
        shutil.move(state / "models", new)
        shutil.rmtree(state)
        second = self.start(new)
        anna = await second.greet("anna")
        listed = await anna.ask(type="list")
        self.assertEqual({item["id"] for item in listed["transcripts"]}, {"ready", "long"})
        self.assertEqual((await self.fetch(anna, "ready"))["text"], text)
        self.assertEqual((await self.fetch(anna, "long"))["text"], long_text)
        answer = await anna.ask(type="fetch", id="taken")
        self.assertEqual(answer["code"], "gone")
        for id in ("ready", "long"):
            self.assertTrue((await anna.ask(type="ack", id=id))["purged"])
        self.assertEqual(os.listdir(new / "spool"), [])

    def start(self, state: Path) -> DaemonProcess:
        daemon = DaemonProcess(reactor, state, "--model", str(CHECKPOINT), "--workers", "1")
        self.addCleanup(daemon.signal, "KILL")
        return daemon

    async def fetch(self, client: RawClient, id: str) -> dict[str, Any]:
        answer = await client.ask(type="fetch", id=id)
        self.assertEqual(answer["type"], "transcript", answer)
        return answer


_MAIN = "from transcribed.admin import main; main()"
