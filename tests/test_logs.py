"""The log: its JSON form, and what must never be in it."""

from __future__ import annotations

import ast
import base64
import json
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from string import Formatter
from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory
from twisted.logger import ILogObserver, Logger, globalLogPublisher
from twisted.python import log
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from tests.daemonprocess import ROOT, DaemonProcess, feed, submit
from tests.rawclient import BINARY, TEXT, RawClient, frame
from tests.speech import CHECKPOINT, clip, texts
from transcribed import logs
from transcribed.transcript import State, Transcript

TOKENS = (
    "id0hello.geheimnisEins-_Vq7",
    "id1bearer.geheimnisZwei-_Wr8",
    "id2query.geheimnisDrei-_Xs9",
    "id3field.geheimnisVier-_Yt0",
)


class Awkward:
    """What cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("not shown")


class Gone(StringIO):
    """A file that nobody reads any more."""

    def write(self, text: str) -> int:
        """Fail as a pipe does."""
        raise BrokenPipeError


class JSONTests(SynchronousTestCase):
    """The lines that an observer writes."""

    def setUp(self) -> None:
        self.file = StringIO()
        self.observer = logs.JSONObserver(self.file)
        self.log = Logger("some.room", observer=self.observer)

    def line(self) -> dict[str, Any]:
        """The only line that was written."""
        (line,) = self.file.getvalue().splitlines()
        self.assertTrue(self.file.getvalue().endswith("\n"))
        # Strictly: json.loads by itself takes what other readers do not.
        read: dict[str, Any] = json.loads(line, parse_constant=self.fail)
        return read

    def test_interface(self) -> None:
        verifyObject(ILogObserver, self.observer)
        verifyObject(ILogObserver, logs.json())

    def test_an_event(self) -> None:
        self.log.warn("{id} has {count} left", id="m1", count=3, ratio=0.5, note=None)
        line = self.line()
        self.assertRegex(line.pop("time"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(
            line,
            {
                "level": "warn",
                "namespace": "some.room",
                "message": "m1 has 3 left",
                "id": "m1",
                "count": 3,
                "ratio": 0.5,
                "note": None,
            },
        )

    def test_its_time(self) -> None:
        self.observer({"log_time": 1795000000.25})
        self.assertEqual(self.line()["time"], "2026-11-18T11:06:40.250Z")

    def test_what_a_format_takes_out_of_objects(self) -> None:
        transcript = Transcript(
            "k", "anna", "m1", "bjorn", 16000, 1, 8000, "", "sv", State.READY, 0.0, 1.0
        )
        self.log.info("{t.owner}/{t.id}, {t.seconds} s, is {t.state}", t=transcript)
        line = self.line()
        self.assertEqual(line["message"], "anna/m1, 0.5 s, is ready")
        found = [line[key] for key in ("owner", "id", "seconds", "state")]
        self.assertEqual(found, ["anna", "m1", 0.5, "ready"])
        self.assertNotIn("t", line)

    def test_a_failure(self) -> None:
        try:
            raise ValueError("wrong\nin two lines")
        except ValueError:
            self.log.failure("{what} failed", what="it")
        line = self.line()
        self.assertEqual((line["level"], line["message"]), ("critical", "it failed"))
        self.assertIn("ValueError: wrong\nin two lines", line["traceback"])
        self.assertIn("test_a_failure", line["traceback"])

    def test_one_line_whatever_is_in_it(self) -> None:
        self.log.info("{x}", x="a\nb\r\u2028\x85\x00\ud800å")
        self.assertEqual(self.line()["x"], "a\nb\r\u2028\x85\x00\ud800å")

    def test_what_is_not_plain_is_left_out(self) -> None:
        self.log.info(
            "{a}", a=[1], b={"c": 1}, d=b"bytes", e=float("nan"), f=float("-inf"), g=Awkward()
        )
        self.assertEqual({*self.line()}, {"time", "level", "namespace", "message"})

    def test_its_own_keys_stay_its_own(self) -> None:
        self.observer({"log_format": "{level} {namespace}", "level": "x", "namespace": "y"})
        line = self.line()
        self.assertEqual((line["message"], line["level"]), ("x y", "info"))
        self.assertEqual(line["namespace"], "")

    def test_twisteds_older_events(self) -> None:
        globalLogPublisher.addObserver(self.observer)
        try:
            log.msg("a", "b", number=1)
            log.err(Failure(ValueError("wrong")), "it failed")
        finally:
            globalLogPublisher.removeObserver(self.observer)
        self.flushLoggedErrors(ValueError)
        first, second = map(json.loads, self.file.getvalue().splitlines())
        self.assertEqual((first["message"], first["number"]), ("a b", 1))
        self.assertIn("ValueError: wrong", second["traceback"])
        self.assertEqual(second["level"], "critical")

    def test_events_that_are_none(self) -> None:
        for event in ({}, {"log_format": "{"}, {"log_format": "{x.y}"}, {"log_time": "now"}):
            self.observer(event)
        self.assertEqual(len(self.file.getvalue().splitlines()), 4)

    def test_what_cannot_be_shown(self) -> None:
        self.log.info("{x}", x=Awkward())
        self.assertIn("message", self.line())
        self.observer({"log_failure": "not a failure"})
        self.assertIn("AttributeError", self.file.getvalue())

    def test_nobody_reads(self) -> None:
        closed = StringIO()
        closed.close()
        for file in (Gone(), closed):
            logs.JSONObserver(file)({"log_format": "hej"})


FORBIDDEN = {
    *("text", "texts", "word", "words", "transcription", "audio", "data", "payload", "samples"),
    *("token", "tokens", "secret", "password", "bearer", "credentials", "authorization", "header"),
}


class CallsTests(SynchronousTestCase):
    """Every call of a log in the daemon's code."""

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        for path in sorted((ROOT / "transcribed").rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    log = node.func.value
                    name = getattr(log, "id", getattr(log, "attr", ""))
                    if name in ("_log", "log"):
                        yield f"{path.name}:{node.lineno}", node

    def names(self, call: ast.Call) -> Iterator[str]:
        """What a call names: its fields, and what its format takes out of them."""
        for keyword in call.keywords:
            yield str(keyword.arg)
        for argument in call.args:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                for _, name, _, _ in Formatter().parse(argument.value):
                    yield from re.split(r"[.\[\]]", name or "")

    def test_no_field_is_what_must_not_be_told(self) -> None:
        found = list(self.calls())
        self.assertGreater(len(found), 30)
        for where, call in found:
            self.assertEqual({*self.names(call)} & FORBIDDEN, set(), where)

    def test_formats_are_written_down(self) -> None:
        # One that is put together could have anything in it.
        for where, call in self.calls():
            self.assertNotIn("None", self.names(call), f"{where}: ** is used")
            method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            format = call.args[1 if method == "emit" else 0]
            self.assertIsInstance(format, ast.Constant, where)


class SecrecyTests(TestCase):
    """A real daemon is told secrets in every place there is, and repeats none of them."""

    timeout = 180

    def setUp(self) -> None:
        self.state = Path(self.mktemp())
        self.daemons: list[DaemonProcess] = []
        self.addCleanup(self.end)
        self.secrets = self.forms_of_text() | self.forms_of_audio() | {*TOKENS}
        self.secrets |= {token.split(".")[1] for token in TOKENS}
        self.told = ""

    async def end(self) -> None:
        for daemon in self.daemons:
            await daemon.signal("KILL")

    def start(self, *options: str) -> DaemonProcess:
        options = ("--model", str(CHECKPOINT), *options)
        daemon = DaemonProcess(reactor, self.state, *options, logger="transcribed.logs.json")
        self.daemons.append(daemon)
        return daemon

    def forms_of_text(self) -> set[str]:
        words = {word for text in texts().values() for word in text.split() if len(word) > 3}
        return words | {json.dumps(word)[1:-1] for word in words}

    def forms_of_audio(self) -> set[str]:
        """Pieces of the clips, as they could be written into a line."""
        forms = set()
        for name in texts():
            audio = clip(name).tobytes()
            for start in range(len(audio) // 3 // 48 * 48, len(audio) - 48, len(audio) // 9):
                piece = audio[start : start + 48]
                if len({*piece}) > 12:
                    forms |= {piece.hex(), repr(piece)[2:-1], str([*piece])[1:-1]}
                    forms |= {piece.decode("latin-1"), piece[2:].decode("utf-8", "replace")}
                    # Wherever the encoded bytes may have begun.
                    forms |= {base64.b64encode(piece[i:])[:40].decode() for i in range(3)}
        self.assertGreater(len(forms), 200)
        return forms

    def found(self, told: str) -> set[str]:
        """The secrets that are in what was told."""
        lowered = told.lower()
        words = {s for s in self.secrets if s.isalpha()}
        return {word for word in words if re.search(rf"\b{word}\b", lowered)} | {
            s for s in self.secrets - words if s in told
        }

    async def http(self, daemon: DaemonProcess, request: str) -> None:
        """Ask for a page; what is answered is kept."""
        client: RawClient = await clientFromString(reactor, daemon.endpoint).connect(
            Factory.forProtocol(RawClient)
        )
        client.raw(f"{request}\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        await client.lost
        self.told += client.status + client.headers + client._buffer.decode()

    async def pages(self, daemon: DaemonProcess) -> None:
        for path in ("/metrics", "/health", "/ready"):
            await self.http(daemon, f"GET {path} HTTP/1.1")
            self.assertIn(" 200 ", self.told.rsplit("HTTP/1.1", 1)[1].splitlines()[0])

    async def greet(self, daemon: DaemonProcess, party: str, token: str) -> RawClient:
        client: RawClient = await clientFromString(reactor, daemon.endpoint).connect(
            Factory.forProtocol(RawClient)
        )
        client.handshake(f"/ws?token={TOKENS[2]}", "transcribed.v1", None)
        await client.opened
        client.welcome = await client.ask(type="hello", party=party, token=token)
        return client

    def test_it_would_be_found(self) -> None:
        audio = clip("02.flac").tobytes()
        for form in (repr(audio), audio.hex(), base64.b64encode(audio).decode()):
            self.assertTrue(self.found(f"a line {form} of a log"))
        for line in ("heard: Telefon kommer", '{"x": "l\\u00e4kare"}', f"no {TOKENS[0]}"):
            self.assertTrue(self.found(line), line)
        self.assertEqual(self.found("python honors telefonen; id0hello. is the owner's"), set())

    async def test_nothing_is_told(self) -> None:
        daemon = self.start()
        await daemon.logged("listening on")
        anna = await self.greet(daemon, "anna", TOKENS[0])
        await self.lost_audio(daemon, anna)
        await self.recordings(daemon, anna)
        await self.bad_messages(daemon)
        await self.odd_requests(daemon)
        await self.pages(daemon)
        await daemon.signal("TERM")
        lines = [json.loads(line) for line in daemon.log.splitlines()]
        for line in lines:
            self.assertLessEqual({"time", "level", "namespace", "message"}, {*line})
        # It has told of what happened: the ids, the failures.
        self.assertIn("anna/lost", daemon.log)
        self.assertIn("anna/02.flac for bjorn", daemon.log)
        self.assertTrue([line for line in lines if "traceback" in line])
        self.assertIn('transcribed_refusals_total{code="bad-message"}', self.told)
        self.assertEqual(self.found(daemon.log), set())
        self.assertEqual(self.found("\n".join(str(v) for x in lines for v in x.values())), set())
        self.assertEqual(self.found(self.told), set())

    async def lost_audio(self, daemon: DaemonProcess, anna: RawClient) -> None:
        """A recording whose windows cannot even be read: the workers fail with a traceback."""
        self.assertNotIn("ready: model", daemon.log)
        await submit(anna, "lost", clip("04.flac").tobytes())
        (audio,) = (self.state / "spool").glob("*.audio")
        audio.write_bytes(audio.read_bytes()[:99])
        answer = await anna.ask(type="fetch", id="lost")
        self.assertEqual(answer["code"], "failed")

    async def recordings(self, daemon: DaemonProcess, anna: RawClient) -> None:
        bjorn = await self.greet(daemon, "bjorn", TOKENS[3])
        for name, text in texts().items():
            await submit(anna, name, clip(name).tobytes(), receiver="bjorn")
            self.assertEqual((await bjorn.ask(type="fetch", id=name, owner="anna"))["text"], text)
        await bjorn.ask(type="ack", id="02.flac", owner="anna")
        audio = clip("02.flac").tobytes()
        anna.say(type="submit", id="other")
        feed(anna, audio)
        refused = await anna.ask(type="end", id="other", sha256="0" * 64)
        self.assertEqual(refused["code"], "bad-audio")
        self.assertEqual((await submit(anna, "03.flac", audio))["code"], "id-taken")
        self.assertEqual((await submit(anna, "odd", audio[:-1]))["code"], "bad-audio")
        # A text that cannot be read ends in a traceback.
        for kept in (self.state / "spool").glob("*.text"):
            kept.write_bytes(kept.read_bytes()[:-9])
        answer = await bjorn.ask(type="fetch", id="05.flac", owner="anna")
        self.assertEqual(answer["code"], "internal")

    async def bad_messages(self, daemon: DaemonProcess) -> None:
        text, audio = texts()["07.flac"], clip("07.flac").tobytes()[20_000:24_000]
        bad = [
            text.encode(),
            audio,
            json.dumps({"type": text}).encode(),
            json.dumps({"type": "status", "id": text}).encode(),
            json.dumps({"type": "submit", "id": "m1", "rate": TOKENS[3]}).encode(),
            json.dumps({"type": "submit", "id": "m1", "language": text}).encode(),
            json.dumps({"type": "hello", "party": TOKENS[0], "token": [TOKENS[1]]}).encode(),
            json.dumps({"type": "fetch", "id": "m1", "owner": text, "token": TOKENS[0]}).encode(),
        ]
        for payload in bad:
            client = await self.greet(daemon, "eve", TOKENS[1])
            client.raw(frame(TEXT, payload))
            await client.frames.get()
            client.raw(frame(BINARY, audio))
            client.transport.loseConnection()
            await client.lost
        for opcode, payload, masked in (
            (TEXT, audio * 20, True),
            (3, audio, True),
            (1, audio, False),
        ):
            client = await self.greet(daemon, "eve", TOKENS[1])
            client.raw(frame(opcode, payload, masked=masked))
            await client.lost
        # An upload that is cut off.
        client = await self.greet(daemon, "eve", TOKENS[1])
        client.say(type="submit", id="cut")
        feed(client, clip("09.flac").tobytes())
        client.transport.abortConnection()
        await client.lost

    async def odd_requests(self, daemon: DaemonProcess) -> None:
        """Secrets in HTTP: in the path, the query, headers and the method."""
        text = texts()["02.flac"].replace(" ", "/")
        for request in (
            f"GET /{text}?token={TOKENS[2]} HTTP/1.1",
            f"GET /health?{TOKENS[2]} HTTP/1.1\r\nauthorization: Bearer {TOKENS[1]}",
            f"GET /ws HTTP/1.1\r\nauthorization: Bearer {TOKENS[1]}",
            f"{TOKENS[0]} /health HTTP/1.1",
            f"GET /metrics HTTP/1.1\r\naccept: {TOKENS[1]}",
            f"POST /{text} HTTP/1.1\r\ncookie: {TOKENS[3]}",
            f"GET {TOKENS[2]}",
            f"{TOKENS[2]}",
        ):
            await self.http(daemon, request)
