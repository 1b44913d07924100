"""End to end: a real twistd, real workers, a real model; and what a kill leaves."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import soxr
from twisted.internet import reactor
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from tests.daemonprocess import ROOT, DaemonProcess, feed, submit
from tests.rawclient import BINARY, RawClient, frame
from tests.speech import CHECKPOINT, RATE, STEADY, clip, recording, texts
from transcribed.recognition import cut
from transcribed.spool import _read_windows

TINY = ("--model", str(CHECKPOINT))


class Case(TestCase):
    """Daemons that are gone when the test is over."""

    timeout = 240

    def setUp(self) -> None:
        self.state = Path(self.mktemp())
        self.daemons: list[DaemonProcess] = []
        self.addCleanup(self.end)

    async def end(self) -> None:
        for daemon in self.daemons:
            await daemon.signal("KILL")

    def start(self, *options: str, listen: bool = True, twist: bool = False) -> DaemonProcess:
        daemon = DaemonProcess(reactor, self.state, *options, listen=listen, twist=twist)
        self.daemons.append(daemon)
        return daemon

    def contents(self) -> bytes:
        """All bytes under the state directory."""
        return b"".join(p.read_bytes() for p in self.state.rglob("*") if p.is_file())

    async def fetch(self, client: RawClient, id: str, owner: str) -> dict[str, Any]:
        answer = await client.ask(type="fetch", id=id, owner=owner)
        self.assertEqual(answer["type"], "transcript", answer)
        return answer


class DeliveryTests(Case):
    """Sound in, text out to both sides, and nothing left."""

    async def test_clips(self) -> None:
        daemon = self.start(*TINY)
        anna, bjorn = await daemon.greet("anna"), await daemon.greet("bjorn")
        for name, text in texts().items():
            audio = clip(name).tobytes()
            peak = int(numpy.abs(clip(name)).argmax())
            loud = audio[2 * peak : 2 * peak + 64]
            self.assertGreater(len(set(loud)), 20)
            accepted = await submit(anna, name, audio, receiver="bjorn")
            self.assertEqual(accepted["seconds"], round(len(audio) / 32000, 3))
            for party in (anna, bjorn):
                transcript = await self.fetch(party, name, "anna")
                self.assertEqual(transcript["text"], text)
                words = transcript["words"]
                self.assertEqual([w["word"] for w in words], text.split())
                times = [t for w in words for t in (w["start"], w["end"])]
                self.assertEqual(times, sorted(times))
                self.assertLessEqual(times[-1], accepted["seconds"] + 0.02)
                self.assertTrue(all(0 < w["confidence"] <= 1 for w in words))
            self.assertTrue(text.encode() in self.contents())
            self.assertFalse((await anna.ask(type="ack", id=name))["purged"])
            self.assertTrue((await bjorn.ask(type="ack", id=name, owner="anna"))["purged"])
            self.assertFalse(text.encode() in self.contents())
            self.assertFalse(loud in self.contents())
            self.assertNotIn(text, daemon.log)

    async def test_other_rates_and_channels(self) -> None:
        anna = await self.start(*TINY).greet("anna")
        name, text = next(iter(texts().items()))
        for rate, channels in ((48000, 2), (44100, 1), (22050, 3)):
            samples = soxr.resample(clip(name).astype(numpy.float32), 16000, rate)
            audio = numpy.repeat(samples.astype("<i2")[:, None], channels, axis=1).tobytes()
            id = f"{rate}x{channels}"
            await submit(anna, id, audio, rate=rate, channels=channels)
            self.assertEqual((await self.fetch(anna, id, "anna"))["text"], text)

    async def test_a_long_recording_is_that_of_its_windows(self) -> None:
        anna = await self.start(*TINY).greet("anna")
        samples, text = recording(600, clips=STEADY)
        await anna.ask(type="subscribe")
        await submit(anna, "long", samples.tobytes())
        progress = []
        while True:
            event = await anna.heard()
            progress.append(event["progress"])
            if event["state"] == "ready":
                break
        self.assertEqual(progress, sorted(progress))
        self.assertGreater(len(set(progress)), 25, "it is transcribed window by window")
        self.assertEqual((await self.fetch(anna, "long", "anna"))["text"], text)

    async def test_uploads_are_taken_before_the_model_is_loaded(self) -> None:
        daemon = self.start(*TINY)
        anna = await daemon.greet("anna")
        self.assertNotIn("ready: model", daemon.log)
        name, text = next(iter(texts().items()))
        self.assertEqual((await submit(anna, "m1", clip(name).tobytes()))["state"], "queued")
        self.assertEqual((await self.fetch(anna, "m1", "anna"))["text"], text)

    async def test_the_embedded_model(self) -> None:
        daemon = self.start("--model", "auto", "--workers", "1")
        anna = await daemon.greet("anna")
        await submit(anna, "m1", clip("03.flac").tobytes())
        transcript = await self.fetch(anna, "m1", "anna")
        self.assertTrue(transcript["words"])
        self.assertIn("embedded", transcript["model"])
        self.assertIn("the small embedded Whisper base is used instead", daemon.log)
        welcome = (await daemon.greet("anna")).welcome
        self.assertIn("the small embedded Whisper base is used instead", welcome["warning"])


class StreamingTests(Case):
    """A recording is transcribed while it comes in."""

    PART = 80
    FINAL = cut(PART * RATE, RATE, 20, 3)[:-1]

    async def begin(self, daemon: DaemonProcess, audio: bytes) -> RawClient:
        """Upload so much that some windows are final."""
        anna = await daemon.greet("anna")
        anna.say(type="submit", id="m1", receiver="bjorn")
        feed(anna, audio[: 2 * RATE * self.PART])
        self.assertEqual((await anna.ask(type="status", id="m1"))["seconds"], self.PART)
        return anna

    def windows(self) -> list[int]:
        """The positions of the windows whose results are on disk."""
        (path,) = (self.state / "spool").glob("*.windows")
        return [window.position for window in _read_windows(path.read_bytes())]

    async def done(self, anna: RawClient) -> None:
        """Fires when all windows that are final are transcribed."""
        while len(self.windows()) < len(self.FINAL):
            self.assertEqual((await anna.ask(type="status", id="m1"))["state"], "uploading")

    async def test_windows_are_there_before_the_end(self) -> None:
        samples, text = recording(100, clips=STEADY)
        daemon = self.start(*TINY)
        anna = await self.begin(daemon, samples.tobytes())
        await self.done(anna)
        self.assertEqual(sorted(self.windows()), [w.position for w in self.FINAL])
        feed(anna, samples.tobytes()[2 * RATE * self.PART :])
        self.assertEqual((await anna.ask(type="end", id="m1"))["state"], "queued")
        self.assertEqual((await self.fetch(anna, "m1", "anna"))["text"], text)

    async def test_killed_when_it_is_accepted(self) -> None:
        """Only what was not done is done after the next start."""
        samples, text = recording(100, clips=STEADY)
        total = len(cut(len(samples), RATE, 20, 3))
        daemon = self.start(*TINY, "--workers", "1")
        anna = await self.begin(daemon, samples.tobytes())
        await self.done(anna)
        (worker,) = daemon.workers()
        os.kill(worker, signal.SIGSTOP)
        feed(anna, samples.tobytes()[2 * RATE * self.PART :])
        self.assertEqual((await anna.ask(type="end", id="m1"))["type"], "accepted")
        await daemon.signal("KILL")
        os.kill(worker, signal.SIGKILL)
        stored = len(self.windows())
        self.assertEqual(stored, len(self.FINAL))

        daemon = self.start(*TINY, "--workers", "1")
        anna = await daemon.greet("anna")
        await anna.ask(type="subscribe")
        first = await anna.heard()
        self.assertGreaterEqual(first["progress"], round(stored / total, 4))
        bjorn = await daemon.greet("bjorn")
        self.assertEqual((await self.fetch(bjorn, "m1", "anna"))["text"], text)

    async def test_broken_off(self) -> None:
        """While a worker has a window of it: nothing is left, and no fault is found."""
        daemon = self.start(*TINY, "--workers", "1")
        await daemon.logged("ready: model")
        (worker,) = daemon.workers()
        os.kill(worker, signal.SIGSTOP)
        samples, _ = recording(100, clips=STEADY)
        anna = await self.begin(daemon, samples.tobytes())
        anna.transport.abortConnection()
        anna = await daemon.greet("anna")
        while (await anna.ask(type="list"))["transcripts"]:
            pass
        self.assertEqual(list((self.state / "spool").iterdir()), [])
        os.kill(worker, signal.SIGCONT)
        name, text = next(iter(texts().items()))
        await submit(anna, "m2", clip(name).tobytes())
        self.assertEqual((await self.fetch(anna, "m2", "anna"))["text"], text)
        self.assertEqual([p.suffix for p in (self.state / "spool").iterdir()], [".text"])
        for word in ("failed", "Traceback", "given up"):
            self.assertNotIn(word, daemon.log)


class BatchTests(Case):
    """Short messages that wait together."""

    async def test_each_has_its_own_text(self) -> None:
        daemon = self.start(*TINY, "--workers", "1")
        await daemon.logged("ready: model")
        anna = await daemon.greet("anna")
        (worker,) = daemon.workers()
        os.kill(worker, signal.SIGSTOP)
        for name in STEADY:
            await submit(anna, name, clip(name).tobytes())
        os.kill(worker, signal.SIGCONT)
        for name in STEADY:
            self.assertEqual((await self.fetch(anna, name, "anna"))["text"], texts()[name])


class KillTests(Case):
    """What was accepted is never lost, however the daemon ends."""

    async def test_between_accepted_and_ready(self) -> None:
        daemon = self.start(*TINY)
        anna = await daemon.greet("anna")
        said = list(texts().items())[:4]
        for name, _ in said:
            await submit(anna, name, clip(name).tobytes(), receiver="bjorn")
        anna.say(type="submit", id="half")
        anna.raw(frame(BINARY, bytes(100_000)))
        await anna.ask(type="status", id=said[0][0])
        self.assertEqual(await daemon.signal("KILL"), None)
        (self.state / "spool" / "orphan.audio").write_bytes(b"left by something else")

        daemon = self.start(*TINY)
        await daemon.logged("leftover files")
        anna, bjorn = await daemon.greet("anna"), await daemon.greet("bjorn")
        listed = (await bjorn.ask(type="list"))["transcripts"]
        self.assertEqual([t["id"] for t in listed], [name for name, _ in said])
        for name, text in said:
            self.assertEqual((await self.fetch(bjorn, name, "anna"))["text"], text)
        self.assertEqual((await anna.ask(type="status", id="half"))["code"], "unknown-id")
        suffixes = {path.suffix for path in (self.state / "spool").iterdir()}
        self.assertEqual(suffixes, {".text"})

    async def test_at_many_moments(self) -> None:
        name, text = next(iter(texts().items()))
        audio = clip(name).tobytes()
        for kill_after in self.moments():
            daemon = self.start(*TINY, "--workers", "1")
            anna = await daemon.greet("anna")
            ids = [f"{kill_after}-{i}" for i in range(3)]
            for id in ids:
                self.assertEqual((await submit(anna, id, audio))["type"], "accepted")
            await anna.ask(type="subscribe")
            if kill_after != "accepted":
                while (await anna.heard())["state"] != kill_after:
                    pass
            await daemon.signal("KILL")
            daemon = self.start(*TINY, "--workers", "1")
            anna = await daemon.greet("anna")
            for id in ids:
                self.assertEqual((await self.fetch(anna, id, "anna"))["text"], text)
                self.assertTrue((await anna.ask(type="ack", id=id))["purged"])
            await daemon.signal("KILL")
            self.assertFalse(text.encode() in self.contents())

    def moments(self) -> Iterator[str]:
        yield from ("accepted", "transcribing", "ready")

    async def test_goes_on_where_it_was(self) -> None:
        samples, text = recording(180, clips=STEADY)
        daemon = self.start(*TINY, "--workers", "1")
        anna = await daemon.greet("anna")
        await anna.ask(type="subscribe")
        await submit(anna, "long", samples.tobytes())
        event: dict[str, Any] = {"progress": 0}
        while event["progress"] < 0.4:
            event = await anna.heard()
        await daemon.signal("KILL")
        stored = [p for p in (self.state / "spool").iterdir() if p.suffix == ".windows"]
        kept = len(stored[0].read_text().splitlines())
        self.assertGreaterEqual(kept, 3)
        daemon = self.start(*TINY, "--workers", "1")
        anna = await daemon.greet("anna")
        await anna.ask(type="subscribe")
        first = await anna.heard()
        self.assertGreaterEqual(first["progress"], 0.3)
        anna.say(type="fetch", id="long")
        answer = first
        while answer["type"] != "transcript":
            answer = await anna.heard()
        self.assertEqual(answer["text"], text)

    async def test_of_the_workers(self) -> None:
        daemon = self.start(*TINY, "--workers", "2")
        await daemon.logged("ready: model")
        anna = await daemon.greet("anna")
        samples, text = recording(60, clips=STEADY)
        await submit(anna, "m1", samples.tobytes())
        anna.say(type="fetch", id="m1")
        while (await anna.ask(type="status", id="m1"))["state"] == "queued":
            pass
        for pid in daemon.workers():
            os.kill(pid, signal.SIGKILL)
        self.assertEqual((await anna.heard())["text"], text)
        self.assertIn("it is tried again", daemon.log)

    async def test_of_an_acked_one(self) -> None:
        daemon = self.start(*TINY, "--workers", "1")
        anna, bjorn = await daemon.greet("anna"), await daemon.greet("bjorn")
        name, text = next(iter(texts().items()))
        await submit(anna, "m1", clip(name).tobytes(), receiver="bjorn")
        await self.fetch(bjorn, "m1", "anna")
        await bjorn.ask(type="ack", id="m1", owner="anna")
        await daemon.signal("KILL")
        daemon = self.start(*TINY, "--workers", "1")
        anna, bjorn = await daemon.greet("anna"), await daemon.greet("bjorn")
        gone = await bjorn.ask(type="fetch", id="m1", owner="anna")
        self.assertEqual(gone["code"], "gone", "bjorn has acked")
        self.assertEqual((await self.fetch(anna, "m1", "anna"))["text"], text)
        self.assertTrue((await anna.ask(type="ack", id="m1"))["purged"])
        await daemon.signal("KILL")
        self.assertFalse(text.encode() in self.contents())

    async def test_expired_while_it_was_down(self) -> None:
        daemon = self.start(*TINY, "--workers", "1")
        anna = await daemon.greet("anna")
        await submit(anna, "m1", clip("01.flac").tobytes(), ttl=0.001)
        await daemon.signal("KILL")
        daemon = self.start(*TINY, "--workers", "1")
        await daemon.logged("leftover files")
        anna = await daemon.greet("anna")
        self.assertEqual((await anna.ask(type="fetch", id="m1"))["code"], "gone")
        self.assertEqual(list((self.state / "spool").iterdir()), [])


class RunningTests(Case):
    """Starting, stopping, and what an operator may do wrong."""

    async def test_the_drain(self) -> None:
        daemon = self.start(*TINY, "--workers", "1")
        await daemon.logged("ready: model")
        anna = await daemon.greet("anna")
        name, text = next(iter(texts().items()))
        (worker,) = daemon.workers()
        # So that the first is surely in work, and the second surely not, when the end comes.
        os.kill(worker, signal.SIGSTOP)
        await submit(anna, "m1", clip(name).tobytes())
        await submit(anna, "m2", clip(name).tobytes())
        while (await anna.ask(type="status", id="m1"))["state"] != "transcribing":
            pass
        ended = daemon.signal("TERM")
        await daemon.logged("stopping:")
        os.kill(worker, signal.SIGCONT)
        await ended
        self.assertIn("stopped: 1 recordings are left", daemon.log)
        suffixes = sorted(path.suffix for path in (self.state / "spool").iterdir())
        self.assertEqual(suffixes, [".audio", ".text", ".windows"])
        daemon = self.start(*TINY, "--workers", "1")
        anna = await daemon.greet("anna")
        for id in ("m1", "m2"):
            self.assertEqual((await self.fetch(anna, id, "anna"))["text"], text)

    async def test_no_worker_outlives_it(self) -> None:
        daemon = self.start(*TINY)
        await daemon.logged("ready: model")
        workers = daemon.workers()
        self.assertTrue(workers)
        await daemon.signal("KILL")
        for pid in workers:
            await self.gone(pid)

    async def gone(self, pid: int) -> None:
        """Fires when the process has ended: by a file descriptor that becomes readable then."""
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        ended: Deferred[None] = Deferred()

        class Watch(FileDescriptor):
            def fileno(self) -> int:
                return descriptor

            def doRead(self) -> None:
                self.stopReading()
                os.close(descriptor)
                ended.callback(None)

        Watch(reactor).startReading()
        await ended

    async def fails(self, daemon: DaemonProcess, *words: str) -> None:
        code = await daemon.ended
        self.assertNotEqual(code, 0)
        for word in words:
            self.assertIn(word, daemon.log)
        self.assertNotIn("Traceback", daemon.log)

    async def test_a_second_one_on_its_state_directory(self) -> None:
        first = self.start(*TINY)
        await first.logged("listening on")
        second = self.start("--listen", "tcp:0:interface=127.0.0.1", listen=False)
        await self.fails(second, "in use by another daemon", str(self.state))
        await first.greet("anna")

    async def test_a_port_in_use(self) -> None:
        endpoint = serverFromString(reactor, "tcp:0:interface=127.0.0.1")
        port = await endpoint.listen(Factory())
        host: Any = port.getHost()
        number = host.port
        daemon = self.start("--listen", f"tcp:{number}:interface=127.0.0.1", listen=False)
        await self.fails(daemon, f"tcp:{number}", "Address already in use")
        await maybeDeferred(port.stopListening)

    async def test_a_port_in_use_in_the_background(self) -> None:
        endpoint = serverFromString(reactor, "tcp:0:interface=127.0.0.1")
        port = await endpoint.listen(Factory())
        host: Any = port.getHost()
        self.state.parent.mkdir(parents=True, exist_ok=True)
        options = (
            *(f"--pidfile={self.state}.pid", f"--logfile={self.state}.log", "transcribed"),
            *("--listen", f"tcp:{host.port}:interface=127.0.0.1", "--state", str(self.state)),
        )
        out, err, code = await getProcessOutputAndValue(
            sys.executable,
            [str(Path(sys.executable).with_name("twistd")), *options],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        await maybeDeferred(port.stopListening)
        self.assertEqual(code, 1)
        # twistd shows the beginning in the terminal.
        self.assertIn(f"cannot listen on tcp:{host.port}".encode(), out + err)
        log = Path(f"{self.state}.log").read_text()
        self.assertIn("Address already in use", log)

    async def test_wrong_options(self) -> None:
        for options, words in (
            (("--ttl", "never"), ("--ttl", "never", "number of seconds")),
            (("--workers", "0"), ("--workers", "0", "auto")),
            (("--listen", "tcp:6000"), ("--listen", "tcp:6000", "loopback")),
            (("--model", "/nowhere"), ("--model", "/nowhere")),
        ):
            await self.fails(self.start(*options, listen=False), *words)

    async def test_a_state_directory_that_cannot_be(self) -> None:
        self.state.write_text("a file")
        await self.fails(self.start(*TINY), "state directory", str(self.state))

    async def test_a_database_that_is_none(self) -> None:
        self.state.mkdir()
        (self.state / "transcripts.sqlite").write_text("not a database" * 100)
        await self.fails(self.start(*TINY), "not a database")

    async def test_the_log_of_the_start(self) -> None:
        daemon = self.start(*TINY, "--workers", "1", "--threads", "1")
        await daemon.logged("ready: model")
        for words in (
            str(CHECKPOINT),
            "float32",
            "1 workers x 1 threads",
            str(self.state),
            "resumed 0",
        ):
            self.assertIn(words, daemon.log)
        self.assertNotIn("Traceback", daemon.log)

    async def test_twist(self) -> None:
        """``python -m twisted transcribed`` serves as well."""
        daemon = self.start(*TINY, "--workers", "1", twist=True)
        anna = await daemon.greet("anna")
        name, text = next(iter(texts().items()))
        await submit(anna, "m1", clip(name).tobytes())
        self.assertEqual((await self.fetch(anna, "m1", "anna"))["text"], text)
        await daemon.signal("TERM")
        self.assertIn("stopped:", daemon.log)
