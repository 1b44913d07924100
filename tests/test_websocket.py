"""The transport over real sockets: handshake, frames, limits, close codes, start and stop."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

from tests.fakes import FakePool
from tests.rawclient import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawClient,
    connect,
    frame,
    greet,
)
from transcribed import service
from transcribed.errors import StateInUse
from transcribed.interfaces import PoolStatus
from transcribed.service import Daemon, StateDirectory
from transcribed.settings import Settings
from transcribed.storage.sqlite import SQLiteStore
from transcribed.transcript import Transcript
from transcribed.websocket import Bounds

SECOND = b"\1\0" * 16000


class LoadingPool(FakePool):
    """A pool whose model takes its time."""

    loaded = False

    def status(self) -> PoolStatus:
        """Loading until the test says otherwise."""
        return PoolStatus(
            "fake", None, 1, 1, int(self.loaded), "only a fallback", None if self.loaded else "slow"
        )


class Case(TestCase):
    """A whole daemon but for its recognizers, on a port of its own and on a unix socket."""

    timeout = 30

    def setUp(self) -> None:
        # Most tests leave a window in work, which nobody will finish.
        self.patch(service, "DRAIN_SECONDS", 0.0)
        self.path = Path(self.mktemp())
        # Not below trial's folder: a unix socket's path may have 107 bytes only.
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.socket = f"unix:{folder.name}/socket"
        self.pool = LoadingPool()
        self.start()
        self.addCleanup(self.stop)

    def start(self) -> None:
        self.state = StateDirectory(self.path)
        SQLiteStore.prepare(self.path / "transcripts.sqlite")
        settings = Settings.of(
            listen=("tcp:0:interface=127.0.0.1", self.socket),
            state=self.path,
            model="fake",
            dtype="auto",
            workers=1,
            threads=1,
            ttl=3600,
            language="sv",
            max_seconds=60,
            max_queue=10,
        )
        self.daemon: Daemon | None = Daemon(settings, reactor, self.state, self.pool)
        self.daemon.startService()
        host: Any = self.daemon._listeners.ports[0].getHost()
        self.port = host.port
        self.endpoint = f"tcp:127.0.0.1:{self.port}"

    async def stop(self) -> None:
        daemon, self.daemon = self.daemon, None
        if daemon is not None:
            await daemon.stopService()

    async def get(self, path: str) -> tuple[str, dict[str, Any]]:
        client: RawClient = await clientFromString(reactor, self.endpoint).connect(
            Factory.forProtocol(RawClient)
        )
        client.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        await client.lost
        return client.status.split(" ", 1)[1], json.loads(client._buffer or b"null")


class HandshakeTests(Case):
    """Subprotocols, paths, and other ways to ask."""

    async def test_the_subprotocol(self) -> None:
        client = await connect(reactor, self.endpoint, protocols="other, transcribed.v1")
        self.assertIn(" 101 ", client.status)
        self.assertIn("sec-websocket-protocol: transcribed.v1", client.headers.lower())
        client.transport.loseConnection()
        await client.lost

    async def test_none_offered(self) -> None:
        client = await connect(reactor, self.endpoint, protocols=None)
        self.assertIn(" 101 ", client.status)
        self.assertEqual((await client.ask(type="hello", party="anna"))["type"], "welcome")

    async def test_only_others_offered(self) -> None:
        client = await connect(reactor, self.endpoint, protocols="other, transcribed.v2")
        self.assertIn(" 400 ", client.status)
        await client.lost

    async def test_the_unix_socket(self) -> None:
        client = await greet(reactor, f"unix:{self.socket[5:]}", "anna")
        self.assertEqual((await client.ask(type="list"))["transcripts"], [])

    async def test_compression_is_not_accepted(self) -> None:
        client: RawClient = await clientFromString(reactor, self.endpoint).connect(
            Factory.forProtocol(RawClient)
        )
        client.raw(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
        )
        await client.opened
        self.assertIn(" 101 ", client.status)
        self.assertNotIn("permessage-deflate", client.headers)

    async def test_pages_of_other_hosts(self) -> None:
        for origin, status in (
            ("http://evil.example", 400),
            ("null", 400),
            ("http://127.0.0.1:6000", 101),
            ("http://localhost", 101),
        ):
            client = await connect(reactor, self.endpoint, origin=origin)
            self.assertIn(f" {status} ", client.status, origin)
            client.transport.loseConnection()
            await client.lost

    async def test_no_such_path(self) -> None:
        client = await connect(reactor, self.endpoint, path="/elsewhere")
        self.assertIn(" 404 ", client.status)
        client.transport.loseConnection()
        await client.lost

    async def test_the_connection_limit(self) -> None:
        assert self.daemon is not None
        self.daemon._sessions.bounds = Bounds(connections=1)
        first = await greet(reactor, self.endpoint, "anna")
        second = await connect(reactor, self.endpoint)
        self.assertEqual(await second.close_code(), 1013)
        await second.lost
        first.transport.loseConnection()
        await first.lost
        await self.until(lambda: not self.daemon._sessions.connections)
        third = await greet(reactor, self.endpoint, "anna")
        self.assertEqual((await third.ask(type="list"))["type"], "listing")

    async def until(self, condition: Any) -> None:
        while not condition():
            turn: Deferred[None] = Deferred()
            reactor.callLater(0, turn.callback, None)
            await turn


class FrameTests(Case):
    """What frames may be, and what becomes of others."""

    async def test_a_recording_in_fragments(self) -> None:
        client = await greet(reactor, self.endpoint, "anna")
        client.say(type="submit", id="m1")
        client.raw(frame(BINARY, SECOND[:1], fin=False))
        client.raw(frame(PING, b"amid"))
        client.raw(frame(CONTINUATION, SECOND[1:], fin=True))
        client.raw(frame(BINARY))
        self.assertEqual(await client.frames.get(), (PONG, b"amid"))
        self.assertEqual((await client.ask(type="end", id="m1"))["seconds"], 1.0)
        (piece,) = self.pool.work[0].pieces
        self.assertEqual(Path(piece.audio.path).read_bytes(), SECOND)

    async def test_a_request_in_fragments_and_single_bytes(self) -> None:
        client = await greet(reactor, self.endpoint, "anna")
        request = b'{"type":"list","ref":"r"}'
        wire = frame(TEXT, request[:5], fin=False) + frame(CONTINUATION, request[5:])
        for i in range(len(wire)):
            client.raw(wire[i : i + 1])
        self.assertEqual((await client.heard())["ref"], "r")

    async def test_one_big_frame_is_not_held(self) -> None:
        client = await greet(reactor, self.endpoint, "anna")
        client.say(type="submit", id="m1", rate=48000, channels=2)
        client.raw(frame(BINARY, bytes(48000 * 4 * 50)))
        self.assertEqual((await client.ask(type="end", id="m1"))["seconds"], 50.0)

    async def test_too_long_within_a_frame(self) -> None:
        client = await greet(reactor, self.endpoint, "anna")
        client.say(type="submit", id="m1", ref="s")
        client.raw(frame(BINARY, SECOND * 61))
        answer = await client.heard()
        self.assertEqual((answer["code"], answer["ref"]), ("too-long", "s"))
        client.say(type="end", id="m1")
        self.assertEqual((await client.ask(type="list", ref="l"))["ref"], "l")

    async def test_the_text_limit(self) -> None:
        client = await greet(reactor, self.endpoint, "anna")
        padded = b'{"type":"list","pad":"' + b"x" * (65536 - 24) + b'"}'
        self.assertEqual(len(padded), 65536)
        client.raw(frame(TEXT, padded))
        self.assertEqual((await client.heard())["type"], "listing")
        client.raw(frame(TEXT, padded + b" "))
        self.assertEqual(await client.close_code(), 1009)
        await client.lost

    async def test_the_text_limit_over_fragments(self) -> None:
        client = await greet(reactor, self.endpoint, "anna")
        client.raw(frame(TEXT, b" " * 40000, fin=False) + frame(CONTINUATION, b" " * 40000))
        self.assertEqual(await client.close_code(), 1009)

    async def test_protocol_violations(self) -> None:
        for data, code in (
            (frame(TEXT, b"{}", masked=False), 1002),
            (frame(3, b""), 1002),
            (frame(CONTINUATION, b"x"), 1002),
            (frame(TEXT, b"\xff\xfe"), 1007),
            (frame(PING, b"x" * 126), 1002),
        ):
            client = await greet(reactor, self.endpoint, "anna")
            client.raw(data)
            self.assertEqual(await client.close_code(), code)
            await client.lost

    async def test_the_clients_close(self) -> None:
        client = await greet(reactor, self.endpoint, "anna")
        client.raw(frame(CLOSE, (1000).to_bytes(2, "big")))
        self.assertEqual(await client.frames.get(), (CLOSE, (1000).to_bytes(2, "big")))
        await client.lost

    async def test_policy_closes(self) -> None:
        client = await connect(reactor, self.endpoint)
        self.assertEqual((await client.ask(type="list"))["code"], "unauthenticated")
        self.assertEqual(await client.close_code(), 1008)
        await client.lost

    async def test_a_cut_upload_leaves_nothing(self) -> None:
        client = await greet(reactor, self.endpoint, "anna")
        client.say(type="submit", id="m1")
        client.raw(frame(BINARY, SECOND))
        await client.ask(type="list")
        self.assertEqual(len(list((self.path / "spool").iterdir())), 2)
        client.transport.abortConnection()
        other = await greet(reactor, self.endpoint, "anna")
        while (await other.ask(type="list"))["transcripts"]:
            pass
        self.assertEqual(list((self.path / "spool").iterdir()), [])

    async def test_a_client_that_does_not_read(self) -> None:
        assert self.daemon is not None
        self.daemon._sessions.bounds = Bounds(unsent=100_000)
        client = await greet(reactor, self.endpoint, "anna")
        assert self.daemon is not None
        (connection,) = self.daemon._sessions.connections
        # What the kernel holds for both ends does not count: let it be little.
        connection.transport.socket.setsockopt(SOL_SOCKET, SO_SNDBUF, 4096)
        client.transport.pauseProducing()
        other = await greet(reactor, self.endpoint, "bjorn")
        request = json.dumps({"type": "subscribe", "ref": "x" * 128}).encode()
        while connection in self.daemon._sessions.connections:
            client.raw(frame(TEXT, request) * 200)
            self.assertEqual((await other.ask(type="list"))["type"], "listing")
        client.transport.resumeProducing()
        await client.lost


class ProbeTests(Case):
    """/health, /ready, /welcome's warning."""

    async def test_health_and_ready(self) -> None:
        status, health = await self.get("/health")
        self.assertEqual(status, "200 OK")
        self.assertEqual((health["status"], health["warning"]), ("ok", "only a fallback"))
        status, health = await self.get("/ready")
        self.assertTrue(status.startswith("503 "))
        self.assertEqual((health["status"], health["problem"]), ("loading", "slow"))
        self.pool.loaded = True
        status, health = await self.get("/ready")
        self.assertEqual((status, health["ready_workers"]), ("200 OK", 1))

    async def test_the_warning_is_in_welcome(self) -> None:
        client = await connect(reactor, self.endpoint)
        answer = await client.ask(type="hello", party="anna")
        self.assertEqual(answer["warning"], "only a fallback")


class PurgeTests(Case):
    """The purge on its timer."""

    async def test_no_error_stops_it(self) -> None:
        self.patch(service, "PURGE_SECONDS", 0.01)
        await self.stop()
        self.start()
        assert self.daemon is not None
        store = self.daemon._desk.store
        expire = store.expire
        tries: list[float] = []

        def broken(now: float) -> Deferred[list[Transcript]]:
            tries.append(now)
            if len(tries) == 1:
                raise RuntimeError("raised at once")
            return fail(RuntimeError("the database is locked")) if len(tries) < 4 else expire(now)

        client = await greet(reactor, self.endpoint, "anna")
        client.say(type="submit", id="m1", ttl=0.001)
        client.raw(frame(BINARY, SECOND))
        self.patch(store, "expire", broken)
        self.assertEqual((await client.ask(type="end", id="m1"))["type"], "accepted")
        while list((self.path / "spool").iterdir()):
            await client.ask(type="list")
        self.assertGreaterEqual(len(tries), 4)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 3)
        self.assertEqual((await client.ask(type="fetch", id="m1"))["code"], "gone")


class StopTests(Case):
    """The drain, and what is left for the next start."""

    async def test_the_windows_in_work_are_finished(self) -> None:
        self.patch(service, "DRAIN_SECONDS", 20.0)
        client = await greet(reactor, self.endpoint, "anna")
        for id in ("m1", "m2"):
            client.say(type="submit", id=id)
            client.raw(frame(BINARY, SECOND))
            await client.ask(type="end", id=id)
        client.say(type="fetch", id="m1", ref="f")
        await client.ask(type="status", id="m1")
        stopped = Deferred.fromCoroutine(self.stop())
        answer = await client.ask(type="submit", id="m3")
        self.assertEqual(answer["code"], "busy")
        self.assertFalse(stopped.called)
        self.pool.answer("hej")
        self.assertEqual((await client.heard())["text"], "hej")
        self.assertEqual(await client.close_code(), 1001)
        await stopped
        self.assertEqual(self.pool.work, [], "the queued one was not begun")
        self.start()
        client = await greet(reactor, self.endpoint, "anna")
        states = {t["id"]: t["state"] for t in (await client.ask(type="list"))["transcripts"]}
        self.assertEqual(states["m1"], "ready")
        client.say(type="fetch", id="m2")
        while not self.pool.work:
            await client.ask(type="status", id="m1")
        self.pool.answer("igen")
        answers = [await client.heard()]
        self.assertEqual(answers[-1]["text"], "igen")

    async def test_a_client_that_does_not_answer_the_close(self) -> None:
        client = await greet(reactor, self.endpoint, "anna")
        client.stubborn = True
        await self.stop()
        await client.lost

    async def test_one_daemon_a_state_directory(self) -> None:
        self.assertRaises(StateInUse, StateDirectory, self.path)
        await self.stop()
        StateDirectory(self.path).release()

    async def test_a_port_in_use(self) -> None:
        assert self.daemon is not None
        state = StateDirectory(Path(self.mktemp()))
        SQLiteStore.prepare(state.path / "transcripts.sqlite")
        settings = Settings.of(
            listen=(self.endpoint.replace("tcp:127.0.0.1:", "tcp:") + ":interface=127.0.0.1",),
            state=state.path,
        )
        other = Daemon(settings, reactor, state, FakePool())
        error = self.assertRaises(SystemExit, other.startService)
        self.assertIn("Address already in use", str(error.code))
        self.assertIn(str(self.port), str(error.code))
        state.release()

    async def test_many_at_once(self) -> None:
        clients = [await greet(reactor, self.endpoint, f"party {i}") for i in range(50)]
        await self.stop()
        await gatherResults([client.lost for client in clients])
