"""The client library where connections break, and the ways to the daemon."""

from __future__ import annotations

import io
import tempfile
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.fakeserver import WithDaemon
from transcribed import errors
from transcribed.client import Event, Unreachable
from transcribed.client._connection import Address
from transcribed.client._conversation import Conversation

AUDIO = bytes(range(256)) * 1000


class TestBroken(WithDaemon):
    """Connections that break, and what becomes of the requests."""

    async def test_submit_repeated(self) -> None:
        """Cut after the submit, within the audio, and before the answer: one recording is kept."""
        daemon, client = await self.daemon()
        daemon.cuts = ["submit", "frame", "end"]
        told: list[int] = []
        accepted = await client.submit("m1", io.BytesIO(AUDIO), progress=told.append)
        self.assertEqual(accepted.id, "m1")
        self.assertEqual(daemon.kept["m1"].audio, AUDIO)
        self.assertEqual(len(daemon.sessions), 4)
        self.assertEqual(told[-1], len(AUDIO))

    async def test_submit_that_cannot_be_repeated(self) -> None:
        daemon, client = await self.daemon()
        daemon.cuts = ["end"]
        error = await self.fails(client.submit("m1", iter([AUDIO])), Unreachable)
        self.assertIn("cannot be read again", str(error))
        await client.submit("m2", iter([AUDIO]))
        self.assertEqual(daemon.types().count("submit"), 2)

    async def test_idempotent_requests_repeated(self) -> None:
        daemon, client = await self.daemon()
        await client.submit("m1", AUDIO)
        daemon.texts["m1"] = daemon.kept["m1"].text = "hej"
        daemon.cuts = ["fetch", "ack", "status", "list", "cancel", "fetch"]
        self.assertEqual((await client.fetch("m1")).text, "hej")  # type: ignore[union-attr]
        self.assertEqual((await client.ack("m1")).id, "m1")
        self.assertEqual((await client.status("m1")).id, "m1")
        self.assertEqual(len(await client.list()), 1)
        self.assertEqual((await client.cancel("m1")).id, "m1")
        self.assertEqual(len(daemon.sessions), 7)

    async def test_waiting_fetch_survives(self) -> None:
        daemon, client = await self.daemon()
        await client.submit("m1", AUDIO)
        waiting = client.fetch("m1")
        await daemon.when("fetch")
        daemon.sessions[0].transport.abortConnection()
        await daemon.when("fetch")
        self.assertEqual(daemon.requests[-1][0], 1)
        daemon.finish("m1", "hej")
        self.assertEqual((await waiting).text, "hej")  # type: ignore[union-attr]

    async def test_cancel_answered_gone_the_second_time(self) -> None:
        daemon, client = await self.daemon()
        await client.submit("m1", AUDIO)
        daemon.kept["m1"].gone = True
        await self.fails(client.cancel("m1"), errors.Gone)
        daemon.cuts = ["cancel"]
        self.assertEqual((await client.cancel("m1")).id, "m1")

    async def test_subscription_renewed(self) -> None:
        daemon, client = await self.daemon()
        await client.submit("m1", b"aa")
        seen: Deferred[Event] = Deferred()
        await client.subscribe(seen.callback)
        again = daemon.when("subscribe")
        daemon.sessions[0].transport.abortConnection()
        await again
        daemon.watchers = daemon.watchers[1:]
        daemon.tell("m1", "ready")
        self.assertEqual((await seen).state, "ready")

    async def test_given_up(self) -> None:
        """Requests and subscribers are told when there is no daemon any more."""
        daemon, client = await self.daemon(attempts=3)
        lost: Deferred[Exception] = Deferred()
        await client.subscribe(print, lost.callback)
        waiting = client.list()
        daemon.silent.add("list")
        await daemon.stop()
        await self.fails(waiting, Unreachable)
        self.assertIsInstance(await lost, Unreachable)

    async def test_always_cut(self) -> None:
        """A request on which the connection always breaks is not repeated for ever."""
        daemon, client = await self.daemon(attempts=4)
        await client.connect()
        daemon.cuts = ["status"] * 10
        await self.fails(client.status("m1"), Unreachable)
        self.assertEqual(daemon.types().count("status"), 4)
        daemon.cuts = []
        await self.fails(client.status("m1"), errors.UnknownId)

    async def test_nobody_there(self) -> None:
        daemon, client = await self.daemon()
        await daemon.stop()
        error = await self.fails(client.connect(), Unreachable)
        self.assertIn(self.url, str(error))
        await self.fails(client.submit("m1", b"aa"), Unreachable)

    async def test_unauthenticated(self) -> None:
        daemon, client = await self.daemon()
        daemon.refusals["hello"] = [{"code": "unauthenticated"}]
        await self.fails(client.connect(), errors.Unauthenticated)
        self.assertEqual(len(daemon.sessions), 1)
        daemon.deny = 401
        await self.fails(client.list(), errors.Unauthenticated)

    async def test_odd_servers(self) -> None:
        """Not found, no room, no welcome at all."""
        daemon, client = await self.daemon()
        daemon.deny = 404
        error = await self.fails(client.connect(), Unreachable)
        self.assertIn("404", str(error))
        daemon.deny = 0
        daemon.cuts, daemon.close_code = ["hello"], 1013
        error = await self.fails(client.connect(), Unreachable)
        self.assertIn("too many connections", str(error))
        daemon.silent.add("hello")
        hasty = self.client(self.url, timeout=0.05)
        error = await self.fails(hasty.connect(), Unreachable)
        self.assertIn("does not answer", str(error))

    async def test_closed_while_connecting(self) -> None:
        daemon, client = await self.daemon()
        daemon.silent.add("hello")
        asked = client.list()
        await daemon.when("hello")
        await client.close()
        await self.fails(asked, Unreachable)


class TestWays(WithDaemon):
    """Other ways to the daemon than TCP."""

    async def test_unix_socket(self) -> None:
        # Not below trial's folder: a unix socket's path may have 107 bytes only.
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = f"{folder.name}/socket"
        await self.daemon(UNIXServerEndpoint(reactor, path))
        client = self.client(f"ws+unix:{path}:/ws")
        self.assertEqual((await client.connect()).party, "anna")

    async def test_tls(self) -> None:
        """Trusted by its cafile; not by the system, and not under another name."""
        from twisted.internet.ssl import KeyPair, PrivateCertificate

        key, certificate = certify("127.0.0.1")
        cafile = self.mktemp()
        with open(cafile, "wb") as file:
            file.write(certificate)
        pair = PrivateCertificate.loadPEM(certificate + key)
        self.assertIsInstance(pair.privateKey, KeyPair)
        endpoint = SSL4ServerEndpoint(reactor, 0, pair.options(), interface="127.0.0.1")
        daemon, _ = await self.daemon(endpoint)
        url = self.url.replace("ws://", "wss://")
        client = self.client(url, cafile=cafile)
        await client.submit("m1", AUDIO)
        self.assertEqual(daemon.kept["m1"].audio, AUDIO)
        error = await self.fails(self.client(url).connect(), Unreachable)
        self.assertIn("no trusted TLS", str(error))
        other = self.client(url.replace("127.0.0.1", "localhost"), cafile=cafile)
        error = await self.fails(other.connect(), Unreachable)
        self.assertIn("no trusted TLS", str(error))


def certify(address: str) -> tuple[bytes, bytes]:
    """A key and a self-signed certificate for an IP address, both PEM."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    return (
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain),
        certificate.public_bytes(pem),
    )


class TestBackoff(SynchronousTestCase):
    """The waits between attempts, on a clock."""

    def test_waits_grow_and_end(self) -> None:
        clock, tried = Clock(), []

        async def dial() -> Any:
            tried.append(clock.seconds())
            raise Unreachable("no") from ConnectionRefusedError()

        conversation = Conversation(dial, clock, 4, 9, lambda n: 2.0**n)
        waiter = conversation.connect()
        for _ in range(20):
            clock.advance(1)
        self.failureResultOf(waiter, Unreachable)
        self.assertEqual(tried, [0, 2, 6, 14])
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_close_ends_the_wait(self) -> None:
        clock = Clock()

        async def dial() -> Any:
            raise Unreachable("no")

        conversation = Conversation(dial, clock, 4, 9, lambda n: 2.0**n)
        waiter = conversation.connect()
        self.successResultOf(conversation.close())
        self.failureResultOf(waiter, Unreachable)
        self.assertEqual(clock.getDelayedCalls(), [])


class TestAddress(SynchronousTestCase):
    """URLs."""

    def test_good(self) -> None:
        good = {
            "ws://h:6000/ws": ("ws://h:6000/ws", "h", 6000, None),
            "ws://h": ("ws://h/ws", "h", 80, None),
            "wss://h/other": ("wss://h/other", "h", 443, None),
            "ws://[::1]:6000/ws": ("ws://[::1]:6000/ws", "::1", 6000, None),
            "ws+unix:/run/x.sock": ("ws://localhost/ws", "localhost", 80, "/run/x.sock"),
            "ws+unix:///run/x.sock:/o": ("ws://localhost/o", "localhost", 80, "/run/x.sock"),
        }
        for url, expected in good.items():
            found = Address.parse(url)
            self.assertEqual((found.websocket, found.host, found.port, found.path), expected, url)

    def test_bad(self) -> None:
        for url in ("", "http://h", "ws://", "ws://u@h/", "ws://h:x/", "ws+unix:x", "ws://h/#f"):
            self.assertRaises(ValueError, Address.parse, url)
