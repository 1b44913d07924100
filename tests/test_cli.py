"""The ``transcribe`` command: in this process for the most part, as a child where that matters."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import wave
from typing import Any
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.fakeserver import FakeDaemon
from transcribed import cli, errors, task
from transcribed.client import Unreachable
from transcribed.terminal import Terminal, explain, perform

NO_DAEMON = "ws://127.0.0.1:1/ws"
_MAIN = "import sys; from transcribed.cli import main; main(sys.argv[1:])"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Full(io.BytesIO):
    def write(self, data: Any) -> int:
        raise OSError(28, "No space left on device")


class _WithDaemon(TestCase):
    timeout = 30

    def setUp(self) -> Any:
        self.daemon = FakeDaemon()
        self.out: io.BytesIO = io.BytesIO()
        self.err: io.StringIO = io.StringIO()
        environment = {"TRANSCRIBE_PARTY": "anna", "TRANSCRIBE_URL": NO_DAEMON}
        self.patch(os, "environ", os.environ.copy() | environment)
        self.file = os.path.abspath(self.mktemp() + ".wav")
        with wave.open(self.file, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(bytes(range(256)) * 1000)

        async def listen() -> None:
            self.url = await self.daemon.listen()
            self.addCleanup(lambda: Deferred.fromCoroutine(self.daemon.stop()))

        return Deferred.fromCoroutine(listen())

    async def run_(self, *arguments: str) -> int:
        """Runs a command against the daemon, in this process."""
        with mock.patch.object(sys, "stderr", self.err):
            task = cli.understood(["--url", self.url, *arguments])
        if isinstance(task, int):
            return task
        terminal = Terminal(task.common, self.out, self.err, reactor)
        return await perform(task, reactor, terminal, policy=lambda _: 0.0, attempts=3)

    async def check(self, code: int, *arguments: str) -> str:
        """The command ends with `code`; its output. What it complains of is one line."""
        self.out.seek(0)
        self.out.truncate()
        self.err.seek(0)
        self.err.truncate()
        self.assertEqual(await self.run_(*arguments), code, self.err.getvalue())
        self.assertNotIn("Traceback", self.err.getvalue())
        if code:
            self.assertEqual(self.err.getvalue().count("\n"), 1, self.err.getvalue())
            self.assertTrue(self.err.getvalue().startswith("transcribe: "))
        return self.out.getvalue().decode()


class TestCommands(_WithDaemon):
    """What each does, says and ends with."""

    async def test_send(self) -> None:
        output = await self.check(
            task.OK, "send", self.file, "--to", "bjorn", "--ttl", "60", "--language", "sv"
        )
        (kept,) = self.daemon.kept.values()
        self.assertEqual(output, kept.message["id"] + "\n")
        self.assertEqual(len(kept.message["id"]), 36)
        self.assertEqual(kept.audio, bytes(range(256)) * 1000)
        self.assertEqual(kept.owner, "anna")
        sent = {name: kept.message[name] for name in ("receiver", "ttl", "language", "rate")}
        expected = {"receiver": "bjorn", "ttl": 60.0, "language": "sv", "rate": 16000}
        self.assertEqual(sent, expected)
        other = await self.check(task.OK, "send", self.file)
        self.assertNotEqual(other, output)

    async def test_send_with_id_may_be_repeated(self) -> None:
        for _ in range(2):
            self.assertEqual(await self.check(task.OK, "send", self.file, "--id", "m1"), "m1\n")
        self.daemon.refusals["submit"] = [{"code": "id-taken"}]
        await self.check(task.REFUSED, "send", self.file, "--id", "m1")
        self.assertEqual(self.err.getvalue(), "transcribe: id-taken: because\n")

    async def test_send_and_wait(self) -> None:
        self.daemon.texts["m1"] = "hej på dig"
        output = await self.check(task.OK, "send", self.file, "--id", "m1", "--wait")
        self.assertEqual(output, "m1\nhej på dig\n")
        self.assertTrue(self.daemon.kept["m1"].acked)
        await self.check(task.OK, "--json", "send", self.file, "--id", "m1", "--wait")
        accepted, transcript = map(json.loads, self.out.getvalue().splitlines())
        self.assertEqual((accepted["type"], accepted["id"]), ("accepted", "m1"))
        self.assertEqual((transcript["type"], transcript["text"]), ("transcript", "hej på dig"))
        self.assertNotIn("ref", transcript)

    async def test_cut_while_sending(self) -> None:
        self.daemon.cuts = ["frame", "end"]
        self.assertEqual(await self.check(task.OK, "send", self.file, "--id", "m1"), "m1\n")
        self.assertEqual(len(self.daemon.sessions), 3)

    async def test_ack(self) -> None:
        self.daemon.texts["m1"] = "hej"
        await self.check(task.OK, "send", self.file, "--id", "m1")
        await self.check(task.OK, "fetch", "m1", "--no-ack")
        await self.check(task.OK, "ack", "m1")
        self.assertTrue(self.daemon.kept["m1"].acked)

    async def test_nobody(self) -> None:
        await self.check(task.USAGE, "--as", "", "list")

    async def test_fetch(self) -> None:
        self.daemon.texts["m1"] = "hej"
        await self.check(task.OK, "send", self.file, "--id", "m1")
        self.assertEqual(await self.check(task.OK, "fetch", "m1", "--no-ack"), "hej\n")
        self.assertFalse(self.daemon.kept["m1"].acked)
        self.assertEqual(await self.check(task.OK, "fetch", "m1", "--owner", "bjorn"), "hej\n")
        self.assertTrue(self.daemon.kept["m1"].acked)
        fetch, ack = [message for _, message in self.daemon.requests[-2:]]
        self.assertEqual((fetch["owner"], ack["owner"]), ("bjorn", "bjorn"))

    async def test_fetch_waits(self) -> None:
        await self.check(task.OK, "send", self.file, "--id", "m1")
        arrived = self.daemon.when("fetch")
        arrived.addCallback(lambda _: self.daemon.finish("m1", "hej"))
        self.assertEqual(await self.check(task.OK, "fetch", "m1"), "hej\n")

    async def test_not_ready(self) -> None:
        await self.check(task.OK, "send", self.file, "--id", "m1")
        self.assertEqual(await self.check(task.NOT_NOW, "fetch", "m1", "--no-wait"), "")
        self.assertEqual(self.err.getvalue(), "transcribe: m1 is not ready: queued, 25%\n")
        output = await self.check(task.NOT_NOW, "fetch", "m1", "--no-wait", "--json")
        self.assertEqual(json.loads(output)["state"], "queued")

    async def test_no_text(self) -> None:
        await self.check(task.NO_TEXT, "fetch", "m1")
        self.assertEqual(self.err.getvalue(), "transcribe: unknown-id: not there\n")
        await self.check(task.OK, "send", self.file, "--id", "m1")
        self.daemon.kept["m1"].failed = "it is\nnoise"
        await self.check(task.NO_TEXT, "fetch", "m1")
        self.assertEqual(self.err.getvalue(), "transcribe: failed: it is noise\n")
        await self.check(task.OK, "cancel", "m1")
        await self.check(task.NO_TEXT, "status", "m1")

    async def test_not_acked_when_not_written(self) -> None:
        self.daemon.texts["m1"] = "hej"
        await self.check(task.OK, "send", self.file, "--id", "m1")
        self.out = _Full()
        await self.check(task.UNFORESEEN, "fetch", "m1")
        self.assertIn("No space left", self.err.getvalue())
        self.assertNotIn("ack", self.daemon.types())

    async def test_ack_after_cut(self) -> None:
        self.daemon.texts["m1"] = "hej"
        await self.check(task.OK, "send", self.file, "--id", "m1")
        self.daemon.cuts = ["ack"]
        self.assertEqual(await self.check(task.OK, "fetch", "m1"), "hej\n")
        self.assertTrue(self.daemon.kept["m1"].acked)

    async def test_status_and_list(self) -> None:
        await self.check(task.OK, "send", self.file, "--id", "m1", "--to", "bjorn")
        row = "m1\tanna\tbjorn\tqueued\t0.25\t1.50\t2030-01-01T00:00:00Z\n"
        self.assertEqual(await self.check(task.OK, "status", "m1"), row)
        self.assertEqual(await self.check(task.OK, "list"), row)
        for command in (["status", "m1"], ["list"]):
            found = json.loads(await self.check(task.OK, *command, "--json"))
            self.assertEqual((found["id"], found["progress"]), ("m1", 0.25))

    async def test_watch(self) -> None:
        """Until the daemon is gone for good."""
        await self.check(task.OK, "send", self.file, "--id", "m1")

        async def go() -> None:
            await self.daemon.when("subscribe")
            self.daemon.tell("m1", "transcribing")
            self.daemon.tell("m1", "ready")
            self.daemon.cuts = ["hello"] * 10
            self.daemon.watchers[0].sendClose(1000)

        going = Deferred.fromCoroutine(go())
        output = await self.check(task.UNREACHABLE, "watch")
        await going
        rows = ["m1\tanna\tanna\ttranscribing\t0.25", "m1\tanna\tanna\tready\t0.25"]
        self.assertEqual(output.splitlines(), rows)

    async def test_cancel(self) -> None:
        await self.check(task.OK, "send", self.file, "--id", "m1")
        self.assertEqual(await self.check(task.OK, "cancel", "m1"), "")
        self.assertTrue(self.daemon.kept["m1"].gone)

    async def test_warning(self) -> None:
        self.daemon.warning = "a fallback model"
        await self.check(task.OK, "list")
        self.assertEqual(self.err.getvalue(), "transcribe: the daemon warns: a fallback model\n")

    async def test_token(self) -> None:
        path = self.mktemp()
        with open(path, "w") as file:
            file.write("from the file\n")
        await self.check(task.OK, "list", "--token-file", path)
        self.assertEqual(self.daemon.requests[-2][1]["token"], "from the file")
        os.environ["TRANSCRIBE_TOKEN"] = "from the environment"
        await self.check(task.OK, "list", "--as", "bjorn")
        hello = self.daemon.requests[-2][1]
        self.assertEqual((hello["token"], hello["party"]), ("from the environment", "bjorn"))
        await self.check(task.USAGE, "list", "--token-file", "/nope")

    async def test_refused(self) -> None:
        self.daemon.refusals["hello"] = [{"code": "unauthenticated"}]
        await self.check(task.REFUSED, "list")
        self.daemon.refusals["submit"] = [{"code": "busy", "retry_after": 7}]
        await self.check(task.NOT_NOW, "send", self.file)
        self.assertEqual(self.err.getvalue(), "transcribe: busy: because (try again in 7 s)\n")

    async def test_unreadable(self) -> None:
        await self.check(task.UNREADABLE, "send", "/nope")
        self.assertEqual(self.daemon.sessions, [])

    async def test_usage(self) -> None:
        for wrong in (
            ["send"],
            ["nonsense"],
            ["fetch", "not legal"],
            ["fetch", "m1\n"],
            ["send", self.file, "--ttl", "0"],
            ["list", "--url", "http://h/"],
            ["list", "--url", self.url.replace("ws", "wss", 1), "--cafile", "/nope"],
            [],
        ):
            await self.check(task.USAGE, *wrong)

    async def test_unreachable(self) -> None:
        await self.check(task.UNREACHABLE, "list", "--url", NO_DAEMON)

    async def test_bar(self) -> None:
        """On a terminal there is a bar, and nothing is left of it."""
        self.err = _Terminal()
        await self.check(task.OK, "send", self.file, "--id", "m1")
        self.assertIn("MB sent", self.err.getvalue())
        looked = self.daemon.when("status")
        looked.addCallback(lambda _: self.daemon.finish("m1", "hej"))
        await self.check(task.OK, "fetch", "m1")
        self.assertTrue(self.err.getvalue().endswith("\r\x1b[K"))
        self.assertIn("25%  m1: queued", self.err.getvalue())
        await self.check(task.OK, "fetch", "m1", "--quiet")
        self.assertEqual(self.err.getvalue(), "")


class TestExplanations(SynchronousTestCase):
    """Every refusal has an exit status."""

    def test_codes(self) -> None:
        expected = {
            Unreachable("x"): task.UNREACHABLE,
            errors.UnknownId(): task.NO_TEXT,
            errors.Gone("x"): task.NO_TEXT,
            errors.Failed("x"): task.NO_TEXT,
            errors.Busy("x", 1.5): task.NOT_NOW,
            errors.IdTaken(): task.REFUSED,
            errors.TranscribedError("x"): task.REFUSED,
            ValueError("a mistake of ours"): task.UNFORESEEN,
        }
        for error, code in expected.items():
            self.assertEqual(explain(error)[0], code)
            self.assertIn(code, task.EXIT_CODES)


class _Child(ProcessProtocol):
    def __init__(self) -> None:
        self.out, self.err = b"", b""
        self.wanted: list[tuple[bytes, Deferred[None]]] = []
        self.ended: Deferred[int] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.out += data

    def errReceived(self, data: bytes) -> None:
        self.err += data

    def processEnded(self, reason: Any) -> None:
        self.ended.callback(reason.value.exitCode)


class TestProcess(_WithDaemon):
    """The real command."""

    async def execute(self, *arguments: str) -> tuple[str, str, int]:
        out, err, code = await getProcessOutputAndValue(
            sys.executable, ["-c", _MAIN, *arguments], env=self.environment(), reactor=reactor
        )
        self.assertNotIn(b"Traceback", err)
        return out.decode(), err.decode(), code

    def environment(self) -> dict[str, str]:
        return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)}

    async def test_whole_way(self) -> None:
        self.daemon.texts["m1"] = "hej"
        os.environ["TRANSCRIBE_URL"] = self.url
        out, err, code = await self.execute("send", self.file, "--id", "m1", "--wait", "-q")
        self.assertEqual((out, err, code), ("m1\nhej\n", "", 0))

    async def test_failures(self) -> None:
        _, err, code = await self.execute("list")
        self.assertEqual((code, err.count("\n")), (task.UNREACHABLE, 1))
        _, err, code = await self.execute("send", "/nope")
        self.assertEqual((code, err.count("\n")), (task.UNREADABLE, 1))

    async def test_help(self) -> None:
        out, _, code = await self.execute("--help")
        self.assertEqual(code, 0)
        for status, meaning in task.EXIT_CODES.items():
            self.assertIn(f"{status:<4} {meaning}", out)

    async def test_starts_light(self) -> None:
        """Help and typing errors load nothing that takes long, and nothing loads the model's."""
        heavy = "['twisted', 'autobahn', 'av', 'numpy', 'torch', 'transformers']"
        code = f"import transcribed.cli, sys; print([m for m in {heavy} if m in sys.modules])"
        out, _, _ = await getProcessOutputAndValue(
            sys.executable, ["-c", code], env=self.environment(), reactor=reactor
        )
        self.assertEqual(out, b"[]\n")

    async def test_interrupted(self) -> None:
        await self.check(task.OK, "send", self.file, "--id", "m1")
        for number, arguments, seen in (
            (signal.SIGINT, ["watch"], "subscribe"),
            (signal.SIGTERM, ["fetch", "m1"], "fetch"),
        ):
            child = _Child()
            arrived = self.daemon.when(seen)
            command = [sys.executable, "-c", _MAIN, *arguments, "--url", self.url]
            process: Any = reactor.spawnProcess(
                child, sys.executable, command, env=self.environment()
            )
            await arrived
            process.signalProcess(number)
            self.assertEqual(await child.ended, 128 + number)
            self.assertNotIn(b"Traceback", child.err)
        self.assertNotIn("ack", self.daemon.types())

    async def test_output_that_is_gone(self) -> None:
        """Nobody reads the text: it is not acked."""
        self.daemon.texts["m1"] = "hej"
        await self.check(task.OK, "send", self.file, "--id", "m1")
        child = _Child()
        command = [sys.executable, "-c", _MAIN, "fetch", "m1", "--url", self.url]
        reading, writing = os.pipe()
        os.close(reading)
        reactor.spawnProcess(
            child,
            sys.executable,
            command,
            env=self.environment(),
            childFDs={0: "w", 1: writing, 2: "r"},
        )
        os.close(writing)
        self.assertEqual(await child.ended, task.UNFORESEEN)
        self.assertEqual(child.err.count(b"\n"), 1, child.err)
        self.assertNotIn("ack", self.daemon.types())


class TestListener(_WithDaemon):
    """A port where something else lives."""

    async def test_not_a_websocket(self) -> None:
        from twisted.internet.protocol import Factory, Protocol

        class Rude(Protocol):
            def connectionMade(self) -> None:
                self.transport.loseConnection()  # type: ignore[union-attr]

        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        port = await endpoint.listen(Factory.forProtocol(Rude))
        self.addCleanup(port.stopListening)
        url = f"ws://127.0.0.1:{port.getHost().port}/ws"
        await self.check(task.UNREACHABLE, "list", "--url", url)
