"""Child processes: their environment, what they print, and a few real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.poolcase import PIECE, piece
from transcribed.children import LONGEST_LINE, LineLog, child_environment, process_starter
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
            times=Times(ping=0.2, pong=4),
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

    def test_killedIdle(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.killedIdle())

    async def killedIdle(self) -> None:
        await self.started()
        pid = await self.pid()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: self.pool.idle == 1)
        await until(lambda: self.pool.idle == 2)
        self.assertNotIn(pid, {await self.pid(), await self.pid()})
