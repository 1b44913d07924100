"""The worker process: a real child, over AMP, with the tiny checkpoint.

End to end: these start processes, which takes seconds.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from ampoule.commands import Echo, Shutdown
from ampoule.main import AMPConnector, ProcessStarter
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.trial.unittest import TestCase

from tests.speech import CHECKPOINT, RATE, clip, texts
from transcribed import worker
from transcribed.commands import LoadModel, ResolveModel, TranscribeWindows
from transcribed.errors import ModelUnavailable, RecognitionFailed
from transcribed.recognition import (
    Model,
    Piece,
    SpooledAudio,
    Window,
    WindowResult,
    Word,
    WordsResult,
    cut,
    decode,
    decode_results,
    encode,
    encode_pieces,
    stitch,
)
from transcribed.speech import Sound
from transcribed.worker import Worker

ROOT = CHECKPOINT.parent.parent


def piece(path: str, window: Window, rate: int = RATE, channels: int = 1) -> Piece:
    return Piece(SpooledAudio(path, rate, channels), window, "sv")


class Connector(AMPConnector):  # type: ignore[misc]
    """Keeps what the child says on its standard error."""

    said = b""

    def errReceived(self, data: bytes) -> None:
        self.said += data


class Starter(ProcessStarter):  # type: ignore[misc]
    connectorFactory = Connector


class Wordy(Worker):
    """A worker whose model answers more than AMP can carry."""

    precision = "float32"

    @LoadModel.responder
    def loadModel(self, model: bytes, threads: int, language: str) -> Deferred[dict[str, str]]:
        self._recognizer = self
        return succeed({"precision": self.precision})

    def transcribe(self, sounds: Sequence[Sound]) -> list[WindowResult]:
        return [WordsResult([Word("ord", 0.0, 1.0, 1.0)] * 5000) for _ in sounds]


class OnAGPU(Worker):
    """A worker whose recognizer breaks, and is said to compute on a GPU."""

    def __init__(self) -> None:
        super().__init__()

        class Broken:
            precision = "bfloat16"

            def transcribe(self, sounds: object) -> list[WindowResult]:
                raise RuntimeError("an illegal memory access was encountered")

        worker.load = lambda *args: Broken()  # type: ignore[attr-defined]


class WorkerTests(TestCase):
    """:class:`Worker`."""

    timeout = 120

    def setUp(self) -> None:
        self.root = Path(str(self.mktemp())).absolute()
        self.root.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, self.root)

    def start(self, kind: type[Worker] = Worker) -> Any:
        """A child's connector; it is ended after the test."""
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.root), "OMP_NUM_THREADS": "1"}
        environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        child, finished = Starter(env=environ).startAMPProcess(kind)
        connector = child.transport
        self.ended: Deferred[Any] = finished

        def end() -> Deferred[Any]:
            if connector.transport.pid is not None:
                connector.signalProcess("KILL")
            ended: Deferred[Any] = finished.addErrback(lambda _: None)
            return ended

        self.addCleanup(end)
        return connector

    async def load(self, connector: Any) -> Model:
        answer = await connector.amp.callRemote(
            ResolveModel, asked=str(CHECKPOINT), cache=str(self.root), dtype="float32"
        )
        model = decode(Model, answer["model"])
        answer = await connector.amp.callRemote(
            LoadModel, model=answer["model"], threads=1, language="sv"
        )
        self.assertEqual(answer["precision"], "float32")
        return model

    async def ping(self, connector: Any) -> Any:
        # Not ampoule's Ping: the child of 24.10 ends of it, as it answers text where bytes are due.
        return (await connector.amp.callRemote(Echo, data=b"there?"))["response"]

    def transcribe(self, connector: Any, *pieces: Piece) -> Deferred[list[WindowResult]]:
        return self.send(connector, encode_pieces(pieces))

    def send(self, connector: Any, pieces: bytes) -> Deferred[list[WindowResult]]:
        asked: Deferred[dict[str, bytes]] = connector.amp.callRemote(
            TranscribeWindows, pieces=pieces
        )
        return asked.addCallback(lambda box: decode_results(box["results"]))

    async def failing(self, kind: type[Exception], call: Awaitable[Any]) -> str:
        try:
            await call
        except kind as e:
            return str(e)
        raise self.failureException(f"no {kind.__name__}")

    def spool(self, number: int = 0) -> tuple[str, int, str]:
        """A spooled clip: its path, its frames, its text."""
        name, text = list(texts().items())[number]
        samples = clip(name)
        path = self.root / f"audio{number}"
        path.write_bytes(samples.astype("<i2").tobytes())
        return str(path), len(samples), text

    async def test_transcribes(self) -> None:
        connector = self.start()
        model = await self.load(connector)
        path, frames, text = self.spool()
        results = []
        for window in cut(frames, RATE, model.core, model.context):
            results += await self.transcribe(connector, piece(path, window))
        self.assertEqual(stitch(results).text, text)
        self.assertNotIn(text.split()[0].encode(), connector.said)

    async def test_transcribesABatch(self) -> None:
        connector = self.start()
        await self.load(connector)
        clips = [self.spool(number) for number in range(3)]
        results = await self.transcribe(
            connector, *(piece(path, Window(0, 0, frames, 0, frames)) for path, frames, _ in clips)
        )
        self.assertEqual([stitch([r]).text for r in results], [text for _, _, text in clips])

    async def test_errorsDoNotEndIt(self) -> None:
        """Neither the declared ones nor any other."""
        connector = self.start()
        remote = connector.amp.callRemote

        resolve = remote(ResolveModel, asked="/nowhere", cache=str(self.root), dtype="auto")
        self.assertIn("no directory /nowhere", await self.failing(ModelUnavailable, resolve))
        early = self.transcribe(connector, piece("/nowhere", Window(0, 0, 1, 0, 1)))
        self.assertIn("no model", await self.failing(RecognitionFailed, early))
        rubbish = remote(LoadModel, model=b"rubbish", threads=1, language="")
        self.assertIn("makes no sense", await self.failing(ModelUnavailable, rubbish))

        broken = self.root / "broken"
        shutil.copytree(CHECKPOINT, broken)
        (broken / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"no weights")
        resolve = remote(ResolveModel, asked=str(broken), cache=str(self.root), dtype="auto")
        reason = await self.failing(ModelUnavailable, resolve)
        self.assertIn("the model cannot be resolved: SafetensorError", reason)
        self.assertIn(b"/transcribed/speech/", connector.said, "the child says where")

        model = await self.load(connector)
        lost = encode(msgspec.structs.replace(model, converted="/nowhere"))
        load = remote(LoadModel, model=lost, threads=1, language="")
        reason = await self.failing(ModelUnavailable, load)
        self.assertIn("/nowhere is missing", reason)
        path, frames, text = self.spool()
        whole = Window(0, 0, frames, 0, frames)
        good = piece(path, whole)
        cases = [
            (piece(path + "no", whole), "cannot be read"),
            (piece(path, Window(0, 0, frames + 1, 0, frames)), "shorter"),
            (piece(path, whole, rate=0), "the window cannot be transcribed: ZeroDivisionError"),
            (piece(path, whole, channels=0), "the window cannot be transcribed: ValueError"),
        ]
        for bad, reason in cases:
            call = self.transcribe(connector, good, bad)
            self.assertIn(reason, await self.failing(RecognitionFailed, call))
        call = self.send(connector, b"rubbish")
        self.assertIn("makes no sense", await self.failing(RecognitionFailed, call))
        results = await self.transcribe(connector, good)
        self.assertEqual(stitch(results).text, text)

    async def test_anAnswerTooLongForAMP(self) -> None:
        connector = self.start(Wordy)
        await self.load(connector)
        path, frames, _ = self.spool()
        call = self.transcribe(connector, piece(path, Window(0, 0, frames, 0, frames)))
        self.assertIn("too long", await self.failing(RecognitionFailed, call))
        self.assertEqual(await self.ping(connector), b"there?")

    async def test_endsWithItsGPUsContext(self) -> None:
        """Nothing would work in it any more; a new one may do better."""
        connector = self.start(OnAGPU)
        model = Model("n", "/m", "wav2vec2", "d", 0, None, 20, 3, device="cuda")
        await connector.amp.callRemote(LoadModel, model=encode(model), threads=1, language="")
        path, frames, _ = self.spool()
        working = self.transcribe(connector, piece(path, Window(0, 0, frames, 0, frames)))
        await self.failing(ProcessTerminated, self.ended)
        await self.failing(ProcessTerminated, working)

    async def inferring(self) -> tuple[Any, Deferred[Any], str]:
        """A worker that is at work on a window until somebody opens the pipe that it reads."""
        connector = self.start()
        await self.load(connector)
        pipe = str(self.root / "pipe")
        os.mkfifo(pipe)
        working = self.transcribe(connector, piece(pipe, Window(0, 0, 10, 0, 10)))
        return connector, working, pipe

    async def test_pingsAndInterruptsDuringInference(self) -> None:
        connector, working, pipe = await self.inferring()
        self.assertEqual(await self.ping(connector), b"there?")
        connector.signalProcess("INT")
        self.assertEqual(await self.ping(connector), b"there?")
        self.assertFalse(working.called)
        with open(pipe, "wb"):
            await self.failing(RecognitionFailed, working)

    async def test_endsWithItsParent(self) -> None:
        connector, working, _ = await self.inferring()
        self.assertEqual(await self.ping(connector), b"there?")
        connector.loseConnection()
        await self.failing(ProcessTerminated, self.ended)
        await self.failing(ProcessTerminated, working)

    async def test_shutsDownDuringInference(self) -> None:
        connector, working, _ = await self.inferring()
        await connector.amp.callRemote(Shutdown)
        await self.failing(ProcessDone, working)
        self.assertEqual(await self.ended, "")
