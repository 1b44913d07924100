"""``transcribed tune``: pools that take a known time, and at the end the real command, once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock, deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.speech import CHECKPOINT, CLIPS
from transcribed import task
from transcribed.admin import cli
from transcribed.audiofile import AudioFile, UnreadableFile
from transcribed.cores import WORKER_OVERHEAD
from transcribed.errors import RecognitionFailed
from transcribed.interfaces import IRecognizerPool, PoolStatus
from transcribed.recognition import Model, Piece, WindowResult, WordsResult
from transcribed.tune import (
    MESSAGE,
    WINDOW,
    Found,
    Measured,
    Split,
    TuneFailed,
    Wanted,
    measure,
    pieces,
    splits,
    spool,
    tune,
)

MODEL = Model("some", "/m", "whisper", "d", 1000, ("sv",), 24, 3, "only a test")
WANTED = Wanted("some", "auto", "sv", 2)
# Longer than anything that is waited for takes.
LONG = 10_000.0


class Pool:
    """A pool on a clock: ready after 2 s, it transcribes `threads` seconds of audio in a second.

    :ivar asked: the windows that it was given, in seconds of the recording.
    """

    def __init__(
        self, clock: Clock, workers: int, threads: int, problem: str = "", broken: bool = False
    ) -> None:
        self.model: Model | None = None
        self.whenFree: Callable[[], None] = lambda: None
        self.idle = 0
        self.stopped = False
        self.asked: list[tuple[float, float]] = []
        self._clock = clock
        self._workers = workers
        self._threads = threads
        self._problem = problem or None
        self._broken = broken

    def status(self) -> PoolStatus:
        return PoolStatus("some", "int8", self._workers, self._threads, 0, None, self._problem)

    def start(self) -> None:
        if self._problem is None:
            self._clock.callLater(2, self._load)

    def _load(self) -> None:
        self.model = MODEL
        for _ in range(self._workers):
            self._free()

    def _free(self) -> None:
        self.idle += 1
        self.whenFree()

    def stop(self) -> Deferred[None]:
        self.stopped = True
        return succeed(None)

    def transcribe(self, batch: Sequence[Piece]) -> Deferred[list[WindowResult]]:
        assert self.idle > 0
        [piece] = batch
        window = piece.window
        self.asked.append((window.start / piece.audio.rate, window.stop / piece.audio.rate))
        if self._broken:
            return fail(RecognitionFailed("it died"))
        self.idle -= 1

        def transcribed() -> list[WindowResult]:
            # As in the real pool, the answer comes before the worker is idle again.
            self._clock.callLater(0, self._free)
            return [WordsResult([])]

        return deferLater(self._clock, piece.seconds / self._threads, transcribed)


class Case(SynchronousTestCase):
    """With a clock, and a recording of 47 s."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.audio = spool(AudioFile(str(CLIPS / "02.flac")), self.folder / "audio")
        Path(self.audio.path).write_bytes(bytes(47 * 2 * self.audio.rate))

    def finish(self, work: Any) -> Any:
        """What a coroutine gives; time passes until it is done."""
        done = Deferred.fromCoroutine(work)
        while not done.called and self.clock.seconds() < LONG:
            self.clock.advance(0.01)
        return self.successResultOf(done)


class SplitsTests(SynchronousTestCase):
    """Which ways to share out the cores are tried."""

    def check(self, cores: int, *expected: str, auto: Split | None = None) -> None:
        found = splits(cores, auto or Split(cores, 1))
        self.assertEqual([str(split) for split in found], list(expected))

    def test_few(self) -> None:
        self.check(1, "1 x 1")
        self.check(2, "2 x 1", "1 x 2", "1 x 1")
        self.check(6, "6 x 1", "3 x 2", "2 x 3", "1 x 6", "1 x 1")
        self.check(7, "7 x 1", "1 x 7", "1 x 1")

    def test_many(self) -> None:
        found = splits(720, Split(720, 1))
        self.assertEqual(len(found), 9)
        self.assertEqual((found[0], found[-2]), (Split(720, 1), Split(1, 720)))
        for split in found[:-1]:
            self.assertEqual(split.workers * split.threads, 720)

    def test_auto(self) -> None:
        """What ``auto`` chooses is tried, too, where the memory makes it leave cores over."""
        self.check(8, "8 x 1", "4 x 2", "3 x 2", "2 x 4", "1 x 8", "1 x 1", auto=Split(3, 2))


class RecordingTests(Case):
    """What is transcribed."""

    def test_pieces(self) -> None:
        found = pieces(self.audio, "sv", WINDOW, 3)
        windows = [(p.window.start, p.window.stop) for p in found]
        self.assertEqual(windows, [(0, 320000), (320000, 640000), (0, 320000)])
        self.assertEqual({(p.language, p.seconds) for p in found}, {("sv", float(WINDOW))})

    def test_aShortRecordingIsRepeated(self) -> None:
        clip = AudioFile(str(CLIPS / "02.flac"))
        once = b"".join(clip.samples())
        spooled = spool(clip, self.folder / "short")
        data = Path(spooled.path).read_bytes()
        self.assertGreaterEqual(len(data), 2 * WINDOW * spooled.rate)
        self.assertLess(len(data), 2 * WINDOW * spooled.rate + len(once))
        self.assertEqual(data, once * (len(data) // len(once)))

    def test_ofALongOneTheBeginning(self) -> None:
        clip = AudioFile(str(CLIPS / "02.flac"))
        hour = [bytes(2 * 60 * clip.rate)] * 60
        self.patch(clip, "samples", lambda: iter(hour))
        spooled = spool(clip, self.folder / "long")
        self.assertEqual(Path(spooled.path).stat().st_size, 4 * 60 * 2 * clip.rate)

    def test_nothingInIt(self) -> None:
        clip = AudioFile(str(CLIPS / "02.flac"))
        self.patch(clip, "samples", lambda: iter([]))
        self.assertRaises(UnreadableFile, spool, clip, self.folder / "empty")


class MeasureTests(Case):
    """One split."""

    def measure(self, pool: Pool, split: Split) -> Any:
        return measure(pool, split, self.audio, "sv", self.clock, lambda: 300.0)

    def test_figures(self) -> None:
        for workers, threads in ((1, 1), (3, 1), (2, 5)):
            pool = Pool(self.clock, workers, threads)
            m = self.finish(self.measure(pool, Split(workers, threads)))
            self.assertApproximates(m.rate, workers * threads, 0.05 * workers * threads)
            self.assertApproximates(m.latency, MESSAGE / threads, 0.05)
            self.assertApproximates(m.ready, 2, 0.05)
            self.assertEqual(m.memory, 300.0)
            self.assertTrue(pool.stopped)
            short = [(0.0, 5.0)] * (workers + 1)
            self.assertEqual(pool.asked[: len(short)], short)
            windows = pool.asked[len(short) :]
            self.assertEqual({*windows}, {(0.0, 20.0), (20.0, 40.0)})
            # Two for each worker; where that takes no 10 s, more.
            self.assertEqual(len(windows), 2 * workers if threads < 4 else 3 * workers)

    def test_aProblem(self) -> None:
        pool = Pool(self.clock, 1, 1, problem="resolver cannot: there is no such directory")
        failed = self.failureResultOf(
            Deferred.fromCoroutine(self.measure(pool, Split(1, 1))), TuneFailed
        )
        self.assertIn("no such directory", str(failed.value))
        self.assertTrue(pool.stopped)

    def test_oneIsNeverReady(self) -> None:
        pool = Pool(self.clock, 1, 1)
        done = Deferred.fromCoroutine(self.measure(pool, Split(2, 1)))
        while not done.called and self.clock.seconds() < LONG:
            self.clock.advance(10)
        self.failureResultOf(done, TuneFailed)
        self.assertTrue(pool.stopped)

    def test_aWindowFails(self) -> None:
        """All of its windows fail; the failure is told once, and the pool is stopped."""
        pool = Pool(self.clock, 2, 1, broken=True)
        done = Deferred.fromCoroutine(self.measure(pool, Split(2, 1)))
        self.clock.pump([0.01] * 300)
        self.failureResultOf(done, RecognitionFailed)
        self.assertEqual(len(pool.asked), 1)
        self.assertTrue(pool.stopped)

    def test_cancelled(self) -> None:
        """Ctrl-C: the pool is stopped, and no timer is left."""
        pool = Pool(self.clock, 1, 1)
        done = Deferred.fromCoroutine(self.measure(pool, Split(1, 1)))
        self.clock.advance(1)
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertTrue(pool.stopped)


class TuneTests(Case):
    """All of it, on made-up pools."""

    def setUp(self) -> None:
        super().setUp()
        self.told: list[str] = []
        self.made: list[tuple[Split, Pool]] = []
        self.broken: Split | None = None

    def make(
        self,
        model: str,
        cache: str,
        dtype: str,
        workers: int,
        threads: int,
        language: str,
        clock: Clock,
    ) -> IRecognizerPool:
        self.assertEqual((model, dtype, language), ("some", "auto", "sv"))
        self.assertTrue(os.path.isdir(cache))
        split = Split(workers, threads)
        pool = Pool(clock, workers, threads, broken=split == self.broken and len(self.made) > 0)
        self.made.append((split, pool))
        return pool

    def tune(self, wanted: Wanted = WANTED, cores: int = 4, memory: int | None = None) -> Any:
        return tune(
            wanted, self.clock, self.told.append, self.make, lambda: 300.0, lambda: (cores, memory)
        )

    def test_inTurns(self) -> None:
        found = self.finish(self.tune())
        tried = [Split(4, 1), Split(2, 2), Split(1, 4), Split(1, 1)]
        self.assertEqual([split for split, _ in self.made], [Split(1, 4), *tried, *tried])
        self.assertEqual([*found.rounds], tried)
        self.assertTrue(all(len(rounds) == 2 for rounds in found.rounds.values()))
        self.assertTrue(all(pool.stopped for _, pool in self.made))
        self.assertEqual((found.auto, found.left_out), (Split(4, 1), []))
        self.assertIn("only a test", self.told)

    def test_littleMemory(self) -> None:
        """What does not fit is not tried; a single worker always is."""
        found = self.finish(self.tune(memory=3 * WORKER_OVERHEAD))
        self.assertEqual([*found.rounds], [Split(2, 2), Split(1, 4), Split(1, 1)])
        self.assertEqual((found.auto, found.left_out), (Split(2, 2), [Split(4, 1)]))
        found = self.finish(self.tune(memory=0))
        self.assertEqual([*found.rounds], [Split(1, 4), Split(1, 1)])

    def test_whatFailsIsLeftOut(self) -> None:
        self.broken = Split(2, 2)
        found = self.finish(self.tune())
        self.assertEqual(found.failed, {Split(2, 2): "it died"})
        self.assertEqual([*found.rounds], [Split(4, 1), Split(1, 4), Split(1, 1)])
        self.assertEqual([split for split, _ in self.made].count(Split(2, 2)), 1)

    def test_nothingToMeasure(self) -> None:
        self.broken = Split(1, 1)
        done = Deferred.fromCoroutine(self.tune(cores=1))
        self.clock.pump([0.01] * 1000)
        self.failureResultOf(done, TuneFailed)

    def test_noSuchRecording(self) -> None:
        wanted = Wanted("some", "auto", "sv", 1, "/nope")
        self.failureResultOf(Deferred.fromCoroutine(self.tune(wanted)), UnreadableFile)
        self.assertEqual(self.made, [])


class FoundTests(SynchronousTestCase):
    """What is said of the figures."""

    def setUp(self) -> None:
        self.found = Found("some", "int8", 8, 2**30, Split(2, 4))
        self.found.rounds = {
            Split(2, 4): [Measured(r, 3.0, 500.0, 2.0) for r in (9.0, 1.0, 8.0)],
            Split(1, 8): [Measured(5.0, t, 300.0, 2.0) for t in (1.0, 2.0, 9.0)],
        }
        self.found.failed = {Split(1, 1): "it died"}
        self.found.left_out = [Split(8, 1)]

    def test_medians(self) -> None:
        self.assertEqual(
            self.found.medians,
            {
                Split(2, 4): Measured(8.0, 3.0, 500.0, 2.0),
                Split(1, 8): Measured(5.0, 2.0, 300.0, 2.0),
            },
        )

    def test_lines(self) -> None:
        self.assertEqual(
            list(self.found.lines()),
            [
                "model some, int8; cores: 8; memory: 1024 MiB",
                "medians of 3 rounds in turns",
                "",
                "workers x threads  x real time  5 s message  memory of all  all ready in",
                "            2 x 4          8.0       3.00 s        500 MiB         2.0 s",
                "            1 x 8          5.0       2.00 s        300 MiB         2.0 s",
                "            1 x 1  failed: it died",
                "            8 x 1  left out: there is not the memory for it",
                "",
                "auto chooses           2 x 4",
                "most audio a second    2 x 4",
                "quickest short message 1 x 8",
            ],
        )

    def test_json(self) -> None:
        found = json.loads(json.dumps(self.found.as_json()))
        self.assertEqual(found["auto"], {"workers": 2, "threads": 4})
        self.assertEqual(found["fastest"], {"workers": 2, "threads": 4})
        self.assertEqual([len(split["rounds"]) for split in found["splits"]], [3, 3])
        self.assertEqual(found["splits"][1]["latency"], 2.0)
        self.assertEqual(found["failed"], [{"workers": 1, "threads": 1, "reason": "it died"}])
        self.assertEqual(found["left_out"], [{"workers": 8, "threads": 1}])


class UsageTests(SynchronousTestCase):
    """What the command line takes."""

    def test_wrong(self) -> None:
        for arguments, said in (
            (["tune", "--model", "/nope"], "a directory that is there"),
            (["tune", "--dtype", "float7"], "one of auto, float32"),
            (["tune", "--rounds", "0"], "1<=x<=100"),
            (["tune", "--json", "/nope/x"], "/nope/x"),
            (["nonsense"], "nonsense"),
        ):
            result = CliRunner().invoke(cli, arguments)
            self.assertEqual(result.exit_code, task.USAGE, result.output)
            self.assertIn(said, result.output)


# On one core, where there is one split to measure, however many the machine has.
_MAIN = """
import os, sys
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from transcribed.admin import main
main()
"""


class _Child(ProcessProtocol):
    def __init__(self) -> None:
        self.said: Deferred[bytes] = Deferred()
        self.ended: Deferred[int] = Deferred()

    def errReceived(self, data: bytes) -> None:
        if not self.said.called:
            self.said.callback(data)

    def processEnded(self, reason: Any) -> None:
        self.ended.callback(reason.value.exitCode)


class CommandTests(TestCase):
    """The real command, with real workers and the tiny checkpoint."""

    timeout = 120

    async def execute(self, *arguments: str, program: str = _MAIN) -> tuple[str, str, int]:
        out, err, code = await getProcessOutputAndValue(
            sys.executable,
            ["-c", program, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            reactor=reactor,
        )
        self.assertNotIn(b"Traceback", err)
        return out.decode(), err.decode(), code

    async def test_tune(self) -> None:
        file = self.mktemp()
        out, err, code = await self.execute(
            "tune", "--model", str(CHECKPOINT), "--rounds", "1", "--json", file
        )
        self.assertEqual(code, 0, err)
        self.assertIn("\nauto chooses           1 x 1\n", out)
        found = json.loads(Path(file).read_text())
        [split] = found["splits"]
        self.assertEqual((split["workers"], split["threads"]), (1, 1))
        for column in ("rate", "latency", "memory", "ready"):
            self.assertGreater(split[column], 0, column)

    async def test_noModel(self) -> None:
        empty = self.mktemp()
        os.mkdir(empty)
        out, err, code = await self.execute("tune", "--model", os.path.abspath(empty))
        self.assertEqual((out, code), ("", task.UNFORESEEN))
        self.assertIn("config.json", err)

    async def test_noRecording(self) -> None:
        out, err, code = await self.execute("tune", "--audio", "/nope")
        self.assertEqual((out, code), ("", task.UNREADABLE))
        self.assertEqual(err, "transcribed: /nope: there is no such file\n")

    async def test_interrupted(self) -> None:
        """Ctrl-C, while the model is being found: nothing is left."""
        folder = os.path.abspath(self.mktemp())
        os.mkdir(folder)
        child = _Child()
        process: Any = reactor.spawnProcess(
            child,
            sys.executable,
            [sys.executable, "-c", _MAIN, "tune", "--model", str(CHECKPOINT)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": folder},
        )
        await child.said
        self.assertEqual(len(os.listdir(folder)), 1)
        process.signalProcess("INT")
        self.assertEqual(await child.ended, task.INTERRUPTED)
        self.assertEqual(os.listdir(folder), [])

    async def test_startsLight(self) -> None:
        """Help and typing errors load nothing that takes long, and nothing loads the model's."""
        for module, heavy in (
            ("admin", "['twisted', 'av', 'numpy', 'torch', 'transformers']"),
            ("tune", "['av', 'numpy', 'torch', 'transformers', 'twisted.internet.reactor']"),
        ):
            program = (
                f"import transcribed.{module}, sys\n"
                f"print([name for name in {heavy} if name in sys.modules])"
            )
            out, _, _ = await self.execute(program=program)
            self.assertEqual(out, "[]\n")
