"""What is told to nobody: text, audio and tokens, in the log and on the pages of a real daemon."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
from pathlib import Path

import jwt
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

from tests.daemonprocess import DaemonProcess, feed, submit
from tests.rawclient import BINARY, TEXT, RawClient, frame
from tests.speech import CHECKPOINT, clip, texts
from transcribed import tokens

TOKENS = (
    "id0hello.geheimnisEins-_Vq7",
    "id1bearer.geheimnisZwei-_Wr8",
    "id2query.geheimnisDrei-_Xs9",
    "id3field.geheimnisVier-_Yt0",
)


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
        options = ("--model", str(CHECKPOINT), "--workers", "1", *options)
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
        os.kill(daemon.workers()[0], signal.SIGKILL)
        await daemon.logged("died of signal 9")
        await self.http(daemon, "GET /metrics HTTP/1.1")
        await daemon.signal("TERM")
        lines = [json.loads(line) for line in daemon.log.splitlines()]
        for line in lines:
            self.assertLessEqual({"time", "level", "namespace", "message"}, {*line})
        # It has told of what happened: the ids, the failures.
        self.assertIn("anna/lost", daemon.log)
        self.assertIn("anna/02.flac for bjorn", daemon.log)
        self.assertTrue([line for line in lines if "traceback" in line])
        for sample in (
            'transcripts_total{state="queued"} 13.0',
            'transcripts_total{state="ready"} 12.0',
            'transcripts_total{state="failed"} 1.0',
            'refusals_total{code="internal"} 1.0',
            "accepted_to_ready_seconds_count 12.0",
            "window_seconds_count 12.0",
            "window_failed_tries_total 3.0",
            "workers_ready 1.0",
            'worker_restarts_total{kind="died"} 1.0',
        ):
            self.assertIn(f"\ntranscribed_{sample}\n", self.told)
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

    async def test_nothing_of_credentials(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        tokens_file, key_file = folder / "tokens", folder / "key"
        right, _ = tokens.add(tokens_file, "anna")
        revoked, _ = tokens.add(tokens_file, "cecilia")
        key = "ein-geheimer-Schluessel-von-genug-Zeichen-1234567890"
        key_file.write_text(key)
        web = jwt.encode({"sub": "bjorn", "exp": 4_000_000_000}, key, "HS256")
        expired = jwt.encode({"sub": "bjorn", "exp": 1_000_000_000}, key, "HS256")
        plain = "a-token-that-somebody-wrote-down.as-it-is-0123456789"
        wrong = (right[:-4] + "AAAA", "nobody." + right.split(".")[1], web[:-4] + "AAAA", expired)
        hashes = [line.split("$")[-1].split()[0] for line in tokens_file.read_text().splitlines()]
        given = (right, revoked, key, web, plain, *wrong, *hashes)
        # Parts of them as well, but no heads: those of web tokens are the same everywhere.
        self.secrets |= {part for each in given for part in each.split(".")[-2:] if len(part) > 9}
        auth = ("--auth", f"tokens:{tokens_file}", "--auth", f"jwt:{key_file}")
        daemon = self.start(*auth)
        await daemon.logged("listening on")

        async def answer(party: str | None, token: str | None, bearer: str | None) -> str:
            client: RawClient = await clientFromString(reactor, daemon.endpoint).connect(
                Factory.forProtocol(RawClient)
            )
            self.addCleanup(client.transport.abortConnection)
            header = "" if bearer is None else f"\r\nAuthorization: Bearer {bearer}"
            client.handshake(f"/ws HTTP/1.1{header}\r\nX-Rest:", None, None)
            await client.opened
            said = {"party": party, "token": token}
            told = await client.ask(
                type="hello", **{k: v for k, v in said.items() if v is not None}
            )
            return str(told.get("code", told.get("party")))

        self.assertEqual(await answer("anna", right, None), "anna")
        self.assertEqual(await answer(None, None, right), "anna")
        self.assertEqual(await answer(None, None, web), "bjorn")
        self.assertEqual(await answer("cecilia", revoked, None), "cecilia")
        for each in wrong:
            self.assertEqual(await answer("anna", each, each), "unauthenticated")
        self.assertEqual(await answer("anna", web, None), "unauthenticated")
        tokens.revoke(tokens_file, "cecilia")
        daemon.transport.signalProcess("HUP")
        await daemon.logged("1 dismissed")
        for file in (tokens_file, key_file):
            file.write_bytes(file.read_bytes() + f"\n{plain}\n".encode())
        daemon.transport.signalProcess("HUP")
        await daemon.logged("credentials are as before")
        await daemon.logged("ready: model")
        await self.pages(daemon)
        await daemon.signal("TERM")
        self.assertIn("wrong credentials from", daemon.log)
        self.assertIn('transcribed_refusals_total{code="unauthenticated"} ', self.told)
        refusing = self.start(*auth)
        await refusing.ended
        self.assertIn("cannot use --auth", refusing.log)
        for told in (daemon.log, refusing.log, self.told):
            self.assertEqual(self.found(told), set())
