"""End to end, with real daemons: TLS, tokens, what SIGHUP changes, addresses, handshakes."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, clientFromString, wrapClientTLS
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests import certificates
from tests.daemonprocess import DaemonProcess
from tests.rawclient import RawClient
from tests.speech import CHECKPOINT
from transcribed import tokens
from transcribed.client import Client, Unreachable
from transcribed.errors import Unauthenticated

TINY = ("--model", str(CHECKPOINT), "--workers", "1", "--threads", "1")
HANDSHAKE = (
    "GET /ws HTTP/1.1",
    "Host: localhost",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Case(TestCase):
    """A folder with tokens and a certificate, and a daemon on a TCP port of its own."""

    timeout = 120

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.port = free_port()
        self.tokens = self.folder / "tokens"
        self.anna = tokens.add(self.tokens, "anna")[0]
        self.bjorn = tokens.add(self.tokens, "bjorn")[0]
        self.auth = ("--auth", f"tokens:{self.tokens}")
        self.addCleanup(self.end)

    async def end(self) -> None:
        await self.daemon.signal("KILL")
        for token in (self.anna, self.bjorn):
            self.assertNotIn(token.split(".")[1], self.daemon.log)
        self.assertNotIn("Traceback", self.daemon.log)

    async def start(self, listen: str, *options: str) -> None:
        self.daemon = DaemonProcess(
            reactor,
            self.folder / "state",
            *TINY,
            *self.auth,
            "--listen",
            listen,
            *options,
            listen=False,
        )
        await self.daemon.logged("listening on")

    async def hang_up(self, *says: str) -> None:
        """SIGHUP; comes back when the daemon has read all files again."""
        self.daemon.log = ""
        self.daemon.transport.signalProcess("HUP")
        for each in ("credentials were read again", *says):
            await self.daemon.logged(each)

    async def shake(self, *headers: str, bind: str = "127.0.0.1") -> RawClient:
        """A connection from an address, whose handshake was answered."""
        endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{self.port}:bindAddress={bind}")
        client: RawClient = await endpoint.connect(Factory.forProtocol(RawClient))
        client.raw("\r\n".join([*HANDSHAKE, *headers, "", ""]).encode())
        return await client.opened

    async def goodbye(self, client: RawClient) -> None:
        client.transport.loseConnection()
        await client.lost


class TLSTests(Case):
    """wss:// with a certificate of its own, which changes."""

    def setUp(self) -> None:
        super().setUp()
        self.key, self.cert = certificates.write(self.folder)

    def client(self, token: str, host: str = "localhost", trusts: Path | None = None) -> Client:
        cafile = None if trusts is None else str(trusts)
        made = Client(f"wss://{host}:{self.port}/ws", "anna", token, cafile=cafile)
        self.addCleanup(made.close)
        return made

    async def raw(self) -> RawClient:
        """A client that trusts anybody, and has said hello."""
        tcp = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        tls: Any = wrapClientTLS(CertificateOptions(), tcp)
        client: RawClient = await tls.connect(Factory.forProtocol(RawClient))
        client.raw("\r\n".join([*HANDSHAKE, "", ""]).encode())
        await client.opened
        self.assertEqual((await client.ask(type="hello", token=self.anna))["party"], "anna")
        return client

    def shown(self) -> Deferred[str]:
        """The certificate that new connections see."""
        address = ("127.0.0.1", self.port)
        return deferToThread(ssl.get_server_certificate, address, timeout=30)

    async def test_all(self) -> None:
        await self.start(
            f"ssl:{self.port}:privateKey={self.key}:certKey={self.cert}:interface=127.0.0.1"
        )
        good = self.client(self.anna, trusts=self.cert)
        self.assertEqual((await good.connect()).party, "anna")
        # The certificate is not for this name, though it is the same machine.
        await self.assertFailure(
            self.client(self.anna, "127.0.0.1", self.cert).connect(), Unreachable
        )
        await self.assertFailure(self.client(self.anna).connect(), Unreachable)
        for wrong in (self.bjorn, "wrong"):
            failing = self.client(wrong, trusts=self.cert).connect()
            await self.assertFailure(failing, Unauthenticated)

        raw = await self.raw()
        first = self.cert.read_text()
        self.assertEqual((await self.shown()).split(), first.split())
        self.cert.write_text("rubbish")
        await self.hang_up(f"a certificate is as before: there is no certificate in {self.cert}")
        self.assertEqual((await self.shown()).split(), first.split())

        certificates.write(self.folder)
        second = self.cert.read_text()
        self.assertNotEqual(first, second)
        await self.hang_up("a certificate was read again")
        self.assertEqual((await self.shown()).split(), second.split())
        self.assertEqual((await raw.ask(type="list"))["type"], "listing", "it goes on")
        newer = self.client(self.anna, trusts=self.cert)
        # Not slowed by the wrong ones: it has been let in before.
        self.assertEqual((await newer.connect()).party, "anna")
        await self.goodbye(raw)


class TokenTests(Case):
    """Tokens on a port in the clear, of this machine only."""

    async def test_sighup(self) -> None:
        await self.start(f"tcp:{self.port}:interface=127.0.0.1")
        anna = await self.shake(f"Authorization: Bearer {self.anna}")
        self.assertEqual((await anna.ask(type="hello"))["party"], "anna")
        bjorn = await self.shake(f"authorization: bearer  {self.bjorn} ")
        self.assertEqual((await bjorn.ask(type="hello", party="bjorn"))["party"], "bjorn")
        good = self.tokens.read_text()
        self.tokens.write_text("TOPSECRET\n")
        await self.hang_up("line 1 was not made by transcribed token")
        self.assertNotIn("TOPSECRET", self.daemon.log)
        self.assertEqual((await anna.ask(type="list"))["type"], "listing")
        self.tokens.write_text(good)
        tokens.revoke(self.tokens, "anna")
        await self.hang_up("1 dismissed")
        self.assertEqual((await anna.heard())["code"], "unauthenticated")
        self.assertEqual(await anna.close_code(), 1008)
        await anna.lost
        self.assertEqual((await bjorn.ask(type="list"))["type"], "listing")
        anna = await self.shake(f"Authorization: Bearer {self.anna}")
        self.assertEqual((await anna.ask(type="hello"))["code"], "unauthenticated")
        self.assertEqual(await anna.close_code(), 1008)
        await anna.lost
        await self.goodbye(bjorn)


class LimitsTests(Case):
    """Connections of several addresses of this machine, and handshakes that do not end."""

    async def code(self, bind: str = "127.0.0.1") -> int:
        """How a connection is closed as soon as it is open."""
        client = await self.shake(bind=bind)
        code = await client.close_code()
        await client.lost
        return code

    async def test_addresses(self) -> None:
        await self.start(
            f"tcp:{self.port}:interface=127.0.0.1",
            *("--max-connections-per-address", "2", "--max-connections", "3"),
            *("--handshake-seconds", "3", "--hello-seconds", "100"),
            *("--allow-origin", "https://example.org"),
        )
        first, second = await self.shake(), await self.shake("Origin: https://example.org")
        refused = await self.shake("Origin: https://evil.example")
        self.assertRegex(refused.status, " 40[03] ")
        await self.goodbye(refused)
        self.assertEqual(await self.code(), 1013)
        third = await self.shake(bind="127.0.0.2")
        self.assertEqual((await third.ask(type="hello", token=self.bjorn))["party"], "bjorn")
        self.assertEqual(await self.code(bind="127.0.0.3"), 1013)
        self.assertEqual((await first.ask(type="hello", token=self.anna))["party"], "anna")

        # It sends a byte of its header now and then.
        endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{self.port}")
        slow: RawClient = await endpoint.connect(Factory.forProtocol(RawClient))
        trickle = LoopingCall(slow.raw, b"G")
        trickle.start(0.2)
        await slow.lost
        trickle.stop()
        self.assertEqual(slow.status, "")
        self.assertEqual((await third.ask(type="list"))["type"], "listing")
        for client in (first, second, third):
            await self.goodbye(client)
