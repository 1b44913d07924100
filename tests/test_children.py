"""Child processes: their environment, what they print, and a few real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.poolcase import PIECE, piece
from transcribed.children import (
    LONGEST_LINE,
    LineLog,
    ProcessChild,
    child_environment,
    process_starter,
)
from transcribed.errors import RecognitionFailed
from transcribed.pool import RecognizerPool
from transcribed.recognition import (
    CTCResult,
)
from transcribed.work import Times


class EnvironmentTests(SynchronousTestCase):
    def test_minimal(self) -> None:
        """What is not named is not passed on, least of all secrets of the daemon."""
        environment = child_environment(
            3,
            {
                "PATH": "/bin",
                "HF_HOME": "/hf",
                "TRANSCRIBED_TOKEN": "secret",
                "PGPASSWORD": "secret",
                "OMP_NUM_THREADS": "64",
                "PYTHONPATH": "/x",
            },
        )
        self.assertEqual(environment["PATH"], "/bin")
        self.assertEqual(environment["HF_HOME"], "/hf")
        self.assertNotIn("secret", environment.values())
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            self.assertEqual(environment[name], "3")
        for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
            self.assertLess(int(environment[name]), 100)
        self.assertEqual(environment["TOKENIZERS_PARALLELISM"], "false")
        self.assertEqual(environment["PYTHONPATH"].split(os.pathsep)[-1], "/x")

    def test_parentImportsLittle(self) -> None:
        """Importing the pool loads neither a reactor nor anything that computes."""
        code = (
            "import sys, transcribed.pool\n"
            "heavy = {'torch', 'numpy', 'transformers', 'ampoule', 'transcribed.worker'}\n"
            "sys.exit(bool(heavy & set(sys.modules) or 'twisted.internet.reactor' in sys.modules))"
        )
        root = str(Path(__file__).resolve().parent.parent)
        subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


class LineLogTests(SynchronousTestCase):
    def lines(self, *chunks: bytes) -> list[tuple[str, str]]:
        log = LineLog("worker 7")
        with capturedLogs() as logged:
            for chunk in chunks:
                log.feed(chunk)
            log.close()
        self.assertEqual({event["name"] for event in logged} - {"worker 7"}, set())
        return [(event["log_level"].name, event["line"]) for event in logged]

    def test_chunks(self) -> None:
        self.assertEqual(
            self.lines(b"on", b"e\ntw", b"o\n\n", b"r\xc3", b"\xa4\xff{x}"),
            [("info", "one"), ("info", "two"), ("info", "rä\ufffd{x}")],
        )

    def test_formatted(self) -> None:
        """Twisted's own lines keep their level, also the further lines of a traceback."""
        text = (
            b"2026-01-02T03:04:05+0000 [a.b#warn] careful\n"
            b"2026-01-02T03:04:05+0000 [-#critical] it broke\n\tTraceback\n"
            b"2026-01-02T03:04:05+0000 [-#nonsense] what\nplain\n"
        )
        self.assertEqual(
            self.lines(text),
            [
                ("warn", "careful"),
                ("critical", "it broke"),
                ("critical", "\tTraceback"),
                ("info", "what"),
                ("info", "plain"),
            ],
        )

    def test_tooLong(self) -> None:
        """The memory for a line is bounded; the next line is whole again."""
        expected = [("info", "x" * LONGEST_LINE + "…"), ("info", "next")]
        self.assertEqual(self.lines(*[b"x" * 1000] * 50, b"\nnext\n"), expected)
        self.assertEqual(self.lines(b"x" * 50000 + b"\nnext\n"), expected)


class MemoryTests(SynchronousTestCase):
    """:meth:`ProcessChild.memory`."""

    def memory(self, pid: int | None) -> int | None:
        """What is said of a process."""
        child = ProcessChild("worker 7", Clock())
        child.transport = cast(Any, mock.Mock(pid=pid))
        return child.memory()

    def test_anotherProcess(self) -> None:
        """What a process has made itself counts, and not what it has mapped from a file."""
        program = (
            "import mmap, sys\n"
            "own = bytearray(80 << 20)\n"
            "file = open(sys.argv[1], 'rb')\n"
            "shared = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
            "assert not any(shared[::4096])\n"
            "print('ready', flush=True)\n"
            "input()"
        )
        path = self.mktemp()
        with open(path, "wb") as file:
            file.truncate(200 << 20)
        with subprocess.Popen(
            [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            self.assertEqual(process.stdout.readline(), b"ready\n")
            size = self.memory(process.pid)
            process.kill()
        assert size is not None
        self.assertGreater(size, 80 << 20)
        self.assertLess(size, 120 << 20)
        self.assertIsNone(self.memory(process.pid))

    def test_workersAreTheFirstToGoWhenMemoryRunsOut(self) -> None:
        program = (
            "import os\n"
            "from transcribed.worker import Worker\n"
            "def refused(niceness): raise PermissionError('as under a sandbox')\n"
            "os.nice = refused\n"
            "Worker()\n"
            "print(open('/proc/self/oom_score_adj').read())"
        )
        root = Path(__file__).resolve().parent.parent
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=root, check=True, timeout=60, capture_output=True
        )
        self.assertEqual(done.stdout.split(), [b"500"])
        self.assertNotEqual(Path("/proc/self/oom_score_adj").read_text().split(), ["500"])

    def test_notStarted(self) -> None:
        self.assertIsNone(self.memory(None))
        self.assertIsNone(ProcessChild("worker 7", Clock()).memory())


def until(condition: Callable[[], object]) -> Deferred[None]:
    """Fires once `condition` holds; trial's time-out is its deadline."""

    def check(ignored: object = None) -> Any:
        if condition():
            return None
        return deferLater(cast(Any, reactor), 0.02, lambda: None).addCallback(check)

    return cast("Deferred[None]", deferLater(cast(Any, reactor), 0, check))


class RealChildrenTests(TestCase):
    """Real processes (no model), of :class:`tests.stubworker.StubWorker`."""

    timeout = 120

    def setUp(self) -> None:
        self.pool = RecognizerPool(
            "stub",
            "/cache",
            "auto",
            2,
            1,
            "sv",
            cast(Any, reactor),
            process_starter(cast(Any, reactor), "tests.stubworker.StubWorker"),
            times=Times(ping=0.2, pong=8, growth=100 << 20),
            jitter=lambda: 0.0,
        )
        self.addCleanup(self.pool.stop)

    async def started(self) -> None:
        self.pool.start()
        await until(lambda: self.pool.idle == 2)

    async def pid(self) -> int:
        """The process of the worker that has waited longest; it tells in place of a stride."""
        (result,) = await self.pool.transcribe([PIECE])
        assert isinstance(result, CTCResult)
        return int(result.stride)

    def test_lives(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.lives())

    async def lives(self) -> None:
        """A worker that exits, answers rubbish, stops itself or is killed is replaced."""
        await self.started()
        self.assertEqual(self.pool.status().precision, "1 threads")
        pids = {await self.pid(), await self.pid()}
        self.assertEqual(len(pids), 2)
        # While all the rest happens to one worker, the other one's window goes on.
        other = self.pool.transcribe([piece("wait")])
        await until(lambda: self.pool.idle == 1)
        self.assertEqual(await self.poison("exit"), "the worker died (7)")
        self.assertEqual(await self.poison("rubbish"), "the worker answered with rubbish")
        self.assertIn("hung: no answer", await self.poison("sigstop"))
        self.assertIn("no such file", await self.poison("refuse"))
        self.assertIn("error or rubbish", await self.poison("raise"))
        self.assertIn("rubbish", await self.poison("noise"))
        # Its own child holds its stderr open: that must not keep the dead worker alive.
        orphan = Path(self.mktemp())
        self.assertEqual(await self.poison(f"orphan:{orphan}"), "the worker died (8)")
        os.kill(int(orphan.read_text()), signal.SIGKILL)
        self.assertFalse(other.called)
        stopped = self.pool.stop()
        self.failureResultOf(other, RecognitionFailed)
        await stopped

    async def poison(self, path: str) -> str:
        try:
            await self.pool.transcribe([piece(path)])
        except RecognitionFailed as e:
            await until(lambda: self.pool.idle == 1)
            return str(e)
        raise AssertionError("it was transcribed")

    def test_leaking(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.leaking())

    async def leaking(self) -> None:
        """A worker that grows by 64 MiB a window, of which it may have 100 more, does two."""
        await self.started()
        other = self.pool.transcribe([piece("wait")])
        with capturedLogs() as logged:
            first, second, third = [await self.grow() for _ in range(3)]
        self.assertEqual(first, second)
        self.assertNotEqual(third, first)
        [reason] = [event["reason"] for event in logged if "reason" in event]
        self.assertRegex(reason, r"^has grown by 1\d\d MiB$")
        self.assertFalse(other.called)
        other.addErrback(lambda failure: failure.trap(RecognitionFailed) and None)

    async def grow(self) -> int:
        """The process of the worker that has become larger."""
        await until(lambda: self.pool.idle == 1)
        (result,) = await self.pool.transcribe([piece("grow")])
        assert isinstance(result, CTCResult)
        return int(result.stride)

    def test_killedIdle(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.killedIdle())

    async def killedIdle(self) -> None:
        await self.started()
        pid = await self.pid()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: self.pool.idle == 1)
        await until(lambda: self.pool.idle == 2)
        self.assertNotIn(pid, {await self.pid(), await self.pid()})
