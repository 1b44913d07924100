"""The worker process: a real child, over AMP, with the tiny checkpoint.

End to end: these start processes, which takes seconds.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from ampoule.commands import Echo, Shutdown
from ampoule.main import AMPConnector, ProcessStarter
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.trial.unittest import TestCase

from tests.speech import CHECKPOINT, RATE, clip, texts
from transcribed.commands import LoadModel, ResolveModel, TranscribeWindow
from transcribed.errors import ModelUnavailable, RecognitionFailed
from transcribed.recognition import Model, Window, cut, decode, decode_result, encode, stitch
from transcribed.speech.ctc import CTCRecognizer
from transcribed.worker import Worker

ROOT = CHECKPOINT.parent.parent


class Connector(AMPConnector):  # type: ignore[misc]
    """Keeps what the child says on its standard error."""

    said = b""

    def errReceived(self, data: bytes) -> None:
        self.said += data


class Starter(ProcessStarter):  # type: ignore[misc]
    connectorFactory = Connector


class Wordy(Worker):
    """A worker whose model answers more than AMP can carry, once it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        choose = CTCRecognizer._choose_tokens

        def chooseMore(recognizer: CTCRecognizer) -> None:
            choose(recognizer)
            recognizer._tokens = [t and t * 5000 for t in recognizer._tokens]

        CTCRecognizer._choose_tokens = chooseMore  # type: ignore[assignment,method-assign]


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
            ResolveModel, asked=str(CHECKPOINT), cache=str(self.root)
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

    def transcribe(self, connector: Any, path: str, window: Window | bytes, **options: Any) -> Any:
        arguments = {
            "path": path,
            "rate": RATE,
            "channels": 1,
            "window": window if isinstance(window, bytes) else encode(window),
            "language": "sv",
            **options,
        }
        return connector.amp.callRemote(TranscribeWindow, **arguments)

    async def failing(self, kind: type[Exception], call: Awaitable[Any]) -> str:
        try:
            await call
        except kind as e:
            return str(e)
        raise self.failureException(f"no {kind.__name__}")

    def spool(self) -> tuple[str, int, str]:
        """A spooled clip: its path, its frames, its text."""
        name, text = next(iter(texts().items()))
        samples = clip(name)
        path = self.root / "audio"
        path.write_bytes(samples.astype("<i2").tobytes())
        return str(path), len(samples), text

    async def test_transcribes(self) -> None:
        connector = self.start()
        model = await self.load(connector)
        path, frames, text = self.spool()
        results = []
        for window in cut(frames, RATE, model.core, model.context):
            answer = await self.transcribe(connector, path, window)
            results.append(decode_result(answer["result"]))
        self.assertEqual(stitch(results).text, text)
        self.assertNotIn(text.split()[0].encode(), connector.said)

    async def test_errorsDoNotEndIt(self) -> None:
        """Neither the declared ones nor any other."""
        connector = self.start()
        remote = connector.amp.callRemote

        resolve = remote(ResolveModel, asked="/nowhere", cache=str(self.root))
        self.assertIn("no directory /nowhere", await self.failing(ModelUnavailable, resolve))
        early = self.transcribe(connector, "/nowhere", Window(0, 0, 1, 0, 1))
        self.assertIn("no model", await self.failing(RecognitionFailed, early))
        rubbish = remote(LoadModel, model=b"rubbish", threads=1, language="")
        self.assertIn("makes no sense", await self.failing(ModelUnavailable, rubbish))

        broken = self.root / "broken"
        shutil.copytree(CHECKPOINT, broken)
        (broken / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"no weights")
        answer = await remote(ResolveModel, asked=str(broken), cache=str(self.root))
        load = remote(LoadModel, model=answer["model"], threads=1, language="")
        reason = await self.failing(ModelUnavailable, load)
        self.assertIn("the model cannot be loaded", reason)
        self.assertIn(b"ctc.py", connector.said, "the child says where")

        await self.load(connector)
        path, frames, text = self.spool()
        whole = Window(0, 0, frames, 0, frames)
        cases: list[tuple[str, Window | bytes, dict[str, int], str]] = [
            (path + "no", whole, {}, "cannot be read"),
            (path, Window(0, 0, frames + 1, 0, frames), {}, "shorter"),
            (path, b"rubbish", {}, "makes no sense"),
            (path, whole, {"rate": 0}, "the window cannot be transcribed: ZeroDivisionError"),
            (path, whole, {"channels": 0}, "the window cannot be transcribed: ValueError"),
        ]
        for file, window, options, reason in cases:
            call = self.transcribe(connector, file, window, **options)
            self.assertIn(reason, await self.failing(RecognitionFailed, call))
        answer = await self.transcribe(connector, path, whole)
        self.assertEqual(stitch([decode_result(answer["result"])]).text, text)

    async def test_anAnswerTooLongForAMP(self) -> None:
        connector = self.start(Wordy)
        await self.load(connector)
        path, frames, _ = self.spool()
        call = self.transcribe(connector, path, Window(0, 0, frames, 0, frames))
        self.assertIn("too long", await self.failing(RecognitionFailed, call))
        self.assertEqual(await self.ping(connector), b"there?")

    async def inferring(self) -> tuple[Any, Deferred[Any], str]:
        """A worker that is at work on a window until somebody opens the pipe that it reads."""
        connector = self.start()
        await self.load(connector)
        pipe = str(self.root / "pipe")
        os.mkfifo(pipe)
        working = self.transcribe(connector, pipe, Window(0, 0, 10, 0, 10))
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
