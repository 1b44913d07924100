"""Where it may be listened on, by what is known before and after, and with which certificate."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, eventAsText
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.certificates import certificate, pem, write
from transcribed.certificates import Certificate
from transcribed.doors import Doors
from transcribed.endpoints import Endpoint, WrongEndpoint, fields
from transcribed.listeners import BACKLOG, Listeners

NO_CREDENTIALS = ("need no credentials", "--auth tokens:FILE", "loopback", "interface=127.0.0.1")
IN_THE_CLEAR = ("in the clear", "ssl:PORT:privateKey=FILE:certKey=FILE", "--insecure")


@implementer(IListeningPort)
class Adopted:
    """A port that systemd has opened."""

    def __init__(self, address: Any) -> None:
        self._address = address
        self.stopped = False

    def startListening(self) -> None:
        """It listens."""

    def stopListening(self) -> None:
        """Remember it."""
        self.stopped = True

    def getHost(self) -> Any:
        """Where it is."""
        return self._address


class ObjectionTests(SynchronousTestCase):
    """What must not be listened on, and what is said to be done about it."""

    def assertObjection(self, objection: str | None, *says: str) -> None:
        assert objection is not None
        for each in says:
            self.assertIn(each, objection)

    def test_all(self) -> None:
        for text, tls in (("tcp:6000", False), ("ssl:6000:privateKey=/k", True)):
            endpoint = Endpoint.parse(text)
            self.assertEqual((endpoint.tls, endpoint.host), (tls, "every address"))
            for host in ("0.0.0.0", "::", "192.0.2.1", "2001:db8::1", endpoint.host):
                for insecure in (False, True):
                    self.assertObjection(endpoint.objection(host, False, insecure), *NO_CREDENTIALS)
                self.assertEqual(endpoint.objection(host, True, True), None)
                objection = endpoint.objection(host, True, False)
                if tls:
                    self.assertEqual(objection, None)
                else:
                    self.assertObjection(objection, *IN_THE_CLEAR)
            for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "localhost", None):
                for has_auth in (False, True):
                    self.assertEqual(endpoint.objection(host, has_auth, False), None)

    def test_mappedAddressesAreWhatTheyMean(self) -> None:
        endpoint = Endpoint.parse("tcp6:6000:interface=\\:\\:ffff\\:192.0.2.1")
        self.assertObjection(endpoint.objection(endpoint.host, False, False), *NO_CREDENTIALS)

    def test_fields(self) -> None:
        self.assertEqual(fields("a:b=c\\:d:\\e\\\\"), (["a", "e\\"], {"b": "c:d"}))

    def test_parsingSaysWhatIsAllowed(self) -> None:
        for text in ("", "tcp", "tcp:x", "ssl:5", "http:5", "unix", "systemd", "unix:address="):
            error = self.assertRaises(WrongEndpoint, Endpoint.parse, text)
            self.assertTrue(str(error))


class ListenTests(SynchronousTestCase):
    """Listeners over a reactor in memory."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def make(self, has_auth: bool = False, insecure: bool = False) -> Listeners:
        doors = Doors(Clock(), 10.0, 10, 10)
        return Listeners(self.reactor, Factory(), doors, has_auth, insecure)

    def test_whereItListens(self) -> None:
        # In memory, every port says that it is on every address.
        listeners = self.make(has_auth=True, insecure=True)
        self.assertEqual(listeners.listen("tcp:6000:interface=127.0.0.1"), None)
        port, _, backlog, host = self.reactor.tcpServers[-1]
        self.assertEqual((port, backlog, host), (6000, BACKLOG, "127.0.0.1"))
        self.assertEqual(listeners.listen("tcp:6001:interface=127.0.0.1:backlog=7"), None)
        self.assertEqual(self.reactor.tcpServers[-1][2], 7)
        self.assertEqual(listeners.listen("unix:/run/t"), None)
        address, _, backlog, mode, _ = self.reactor.unixServers[-1]
        self.assertEqual((address, backlog, mode), ("/run/t", BACKLOG, 0o660))
        self.assertEqual(len(listeners.ports), 3)
        self.successResultOf(listeners.stop())

    def test_tlsIsBehindTheSameKindOfPort(self) -> None:
        key, cert = write(self.folder)
        listeners = self.make(has_auth=True)
        text = f"ssl:6000:privateKey={key}:certKey={cert}"
        self.assertEqual(listeners.listen(f"{text}:interface=127.0.0.1"), None)
        self.assertEqual(self.reactor.tcpServers[-1][0], 6000)
        self.assertEqual(self.reactor.tcpServers[-1][3], "127.0.0.1")
        self.assertEqual(listeners.listen(f"{text}:interface=\\:\\:1:backlog=5"), None)
        self.assertEqual(self.reactor.tcpServers[-1][2:], (5, "::1"))
        self.assertEqual(self.reactor.sslServers, [])

    def adopt(self, address: Any, has_auth: bool = False, insecure: bool = False) -> str | None:
        """What is said of a socket of systemd's."""
        listeners = self.make(has_auth, insecure)
        self.patch(listeners, "_open", lambda _: Adopted(address))
        objection = listeners.listen("systemd:domain=INET:index=0")
        self.successResultOf(listeners.stop())
        (port,) = listeners.ports
        self.assertTrue(port.stopped)  # type: ignore[attr-defined]
        return objection

    def test_adoptedSockets(self) -> None:
        """Of systemd's, it is known only afterwards who can reach them."""
        for address in (
            IPv4Address("TCP", "0.0.0.0", 6000),
            IPv4Address("TCP", "192.0.2.1", 6000),
            IPv6Address("TCP", "::", 6000),
            IPv6Address("TCP", "::ffff:192.0.2.1", 6000),
        ):
            objection = self.adopt(address)
            assert objection is not None
            self.assertIn("need no credentials", objection)
            self.assertIn("in the clear", self.adopt(address, has_auth=True) or "")
            self.assertEqual(self.adopt(address, has_auth=True, insecure=True), None)
        for local in (
            IPv4Address("TCP", "127.0.0.1", 6000),
            IPv6Address("TCP", "::1", 6000),
            UNIXAddress(b"/run/t"),
        ):
            self.assertEqual(self.adopt(local), None)

    def test_systemdWithoutASocket(self) -> None:
        self.assertTrue(self.make().listen("systemd:domain=INET:index=0"))

    def test_aPortThatIsTaken(self) -> None:
        def taken(*_: object, **__: object) -> None:
            raise CannotListenError("127.0.0.1", 6000, OSError(98, "Address already in use"))

        self.patch(self.reactor, "listenTCP", taken)
        reason = self.make().listen("tcp:6000:interface=127.0.0.1")
        self.assertEqual(reason, "Address already in use")

    def test_filesThatAreNoCertificate(self) -> None:
        """Each is one line, and says which file or what of it."""
        key, cert = write(self.folder)
        other = self.folder / "other"
        other.mkdir()
        wrong_key, _ = write(other)
        rubbish = self.folder / "rubbish.pem"
        rubbish.write_text("TOPSECRET\n")
        for files, says in (
            (f"privateKey={self.folder}/none:certKey={cert}", f"{self.folder}/none: No such file"),
            (f"privateKey={key}:certKey={self.folder}/none", f"{self.folder}/none: No such file"),
            (f"privateKey={key}", f"there is no certificate in {key}"),
            (f"privateKey={key}:certKey={rubbish}", f"there is no certificate in {rubbish}"),
            (f"privateKey={rubbish}:certKey={cert}", ""),
            (f"privateKey={wrong_key}:certKey={cert}", "mismatch"),
            (f"privateKey={self.folder}:certKey={cert}", "Is a directory"),
        ):
            listeners = self.make(has_auth=True)
            reason = listeners.listen(f"ssl:6000:{files}")
            assert reason
            self.assertIn(says, reason)
            self.assertNotIn("\n", reason)
            self.assertNotIn("TOPSECRET", reason)
            self.assertEqual((listeners.ports, self.reactor.tcpServers), ([], []))

    def test_aKeyWithAPassword(self) -> None:
        """Nobody is asked for it, on whatever terminal."""
        _, cert = write(self.folder)
        made = ec.generate_private_key(ec.SECP256R1())
        locked = self.folder / "locked.pem"
        for form in (
            serialization.PrivateFormat.PKCS8,
            serialization.PrivateFormat.TraditionalOpenSSL,
        ):
            encryption = serialization.BestAvailableEncryption(b"password")
            locked.write_bytes(made.private_bytes(serialization.Encoding.PEM, form, encryption))
            reason = self.make(has_auth=True).listen(f"ssl:6000:privateKey={locked}:certKey={cert}")
            self.assertEqual(reason, f"the key in {locked} has a password; it must have none")

    def test_reload(self) -> None:
        """A file that is no good keeps what was, and holds up no other one."""
        key, cert = write(self.folder)
        other = self.folder / "other"
        other.mkdir()
        other_key, other_cert = write(other)
        listeners = self.make(has_auth=True)
        for a, b in ((key, cert), (other_key, other_cert)):
            self.assertEqual(listeners.listen(f"ssl:6000:privateKey={a}:certKey={b}"), None)
        contexts = [each._context for each in listeners._certificates]
        cert.write_text("TOPSECRET")
        with capturedLogs() as events:
            listeners.reload()
        first, second = (each._context for each in listeners._certificates)
        self.assertIs(first, contexts[0])
        self.assertIsNot(second, contexts[1])
        told = "\n".join(map(eventAsText, events))
        self.assertIn(f"a certificate is as before: there is no certificate in {cert}", told)
        self.assertNotIn("TOPSECRET", told)


class CertificateTests(SynchronousTestCase):
    """What the files are made of."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.key, self.cert = write(self.folder)

    def shake(self, named: dict[str, Path], newest: int | None = None) -> Any:
        """A client that has seen the server's certificate; raises what the server says."""
        made = Certificate({name: str(path) for name, path in named.items()})
        server = made.serverConnectionForTLS(None)  # type: ignore[arg-type]
        server.set_accept_state()
        context = SSL.Context(SSL.TLS_METHOD)
        if newest is not None:
            # Without this, OpenSSL's client would not even offer it.
            context.set_cipher_list(b"ALL@SECLEVEL=0")
            context.set_max_proto_version(newest)
        client = SSL.Connection(context, None)
        client.set_connect_state()
        for _ in range(5):
            for one, other in ((client, server), (server, client)):
                with contextlib.suppress(SSL.WantReadError):
                    one.do_handshake()
                with contextlib.suppress(SSL.WantReadError):
                    other.bio_write(one.bio_read(65536))
        return client

    def shown(self, **named: Path) -> tuple[int, str]:
        """How long the chain is that a client is shown, and the version that was agreed on."""
        client = self.shake(named)
        return len(client.get_peer_cert_chain() or []), client.get_protocol_version_name()

    def test_oneFileForAll(self) -> None:
        both = self.folder / "both.pem"
        both.write_bytes(self.key.read_bytes() + self.cert.read_bytes())
        self.assertEqual(self.shown(privateKey=both), (1, "TLSv1.3"))

    def test_theChain(self) -> None:
        more = pem(certificate(ec.generate_private_key(ec.SECP256R1()), "ca"))
        chain = self.folder / "chain.pem"
        chain.write_bytes(more)
        self.assertEqual(self.shown(privateKey=self.key, certKey=self.cert)[0], 1)
        found = self.shown(privateKey=self.key, certKey=self.cert, extraCertChain=chain)
        self.assertEqual(found[0], 2)
        self.cert.write_bytes(self.cert.read_bytes() + more)
        self.assertEqual(self.shown(privateKey=self.key, certKey=self.cert)[0], 2)

    def test_nothingOlderThan12(self) -> None:
        files = {"privateKey": self.key, "certKey": self.cert}
        client = self.shake(files, SSL.TLS1_2_VERSION)
        self.assertEqual(client.get_protocol_version_name(), "TLSv1.2")
        for old in (SSL.TLS1_1_VERSION, SSL.TLS1_VERSION):
            error = self.assertRaises(SSL.Error, self.shake, files, old)
            self.assertIn("unsupported protocol", str(error))

    def test_whatTheContextExcludes(self) -> None:
        """As OpenSSL may refuse old versions by itself."""
        made = Certificate({"privateKey": str(self.key), "certKey": str(self.cert)})
        options = made._context.set_options(0)
        for old in (SSL.OP_NO_SSLv3, SSL.OP_NO_TLSv1, SSL.OP_NO_TLSv1_1):
            self.assertTrue(options & old)
        self.assertFalse(options & (SSL.OP_NO_TLSv1_2 | SSL.OP_NO_TLSv1_3))
