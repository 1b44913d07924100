"""What a connection is held to, and how many there may be; each limit at its edge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import txaio
from twisted.internet.protocol import connectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import House
from tests.rawclient import PING, PONG, TEXT, frame
from tests.sessioncase import Case
from transcribed import requests
from transcribed.interfaces import ISessionPeer
from transcribed.session import Session
from transcribed.settings import OPTIONS, Settings, WrongValue
from transcribed.waits import RETRY_WAITING
from transcribed.websocket import ALL_UNSENT, Bounds, SessionFactory, SessionProtocol, _Backlog


def no_session(_: ISessionPeer) -> Any:
    """Nobody opens a connection here."""
    raise AssertionError("a session was made")


class HelloTests(Case):
    """How long a client may take to say who it is."""

    def test_inTime(self) -> None:
        eva = self.house.party(None)
        self.house.clock.advance(9.99)
        self.assertEqual((eva.sent, eva.closed), ([], None))
        self.assertEqual(eva.ask(type="hello", party="eva")["type"], "welcome")
        self.house.clock.advance(100)
        self.assertEqual((eva.sent, eva.closed), ([], None))
        eva.session.lost()

    def test_late(self) -> None:
        eva = self.house.party(None)
        self.house.clock.advance(10)
        answer = eva.heard()
        self.assertEqual(answer["code"], "unauthenticated")
        self.assertEqual(eva.closed, (1008, "hello did not come in time"))
        eva.say(type="hello", party="eva")
        self.assertEqual(eva.sent, [])
        self.assertEqual(self.anna.ask(type="list")["type"], "listing")
        eva.session.lost()

    def test_whoGoesBefore(self) -> None:
        self.house.party(None).session.lost()
        self.assertEqual(self.house.clock.getDelayedCalls(), [])


class BadMessagesTests(Case):
    """So many in a row."""

    def setUp(self) -> None:
        super().setUp()
        self.house.host = replace(self.house.host, max_bad_messages=3)
        self.eva = self.house.party("eva")

    def bad(self) -> None:
        self.assertEqual(self.eva.ask(type="nonsense")["code"], "bad-message")

    def test_theEdge(self) -> None:
        self.bad()
        self.bad()
        self.assertEqual(self.eva.closed, None)
        self.assertEqual(self.eva.ask(type="list")["type"], "listing")
        self.bad()
        self.bad()
        self.assertEqual(self.eva.closed, None)
        self.bad()
        self.assertEqual(self.eva.closed, (1008, "too many bad messages"))
        self.eva.say(type="list")
        self.assertEqual(self.eva.sent, [])
        self.eva.session.lost()

    def test_refusalsAreNotBad(self) -> None:
        for _ in range(10):
            self.assertEqual(self.eva.ask(type="status", id="no")["code"], "unknown-id")
        self.assertEqual(self.eva.closed, None)
        self.eva.session.lost()


class WaitingTests(Case):
    """Fetches that wait on one connection."""

    def test_theEdge(self) -> None:
        self.patch(requests, "MAX_WAITING", 3)
        self.anna.submit("m1")
        for number in range(3):
            self.anna.say(type="fetch", id="m1", ref=str(number))
        self.assertEqual(self.anna.sent, [])
        refused = self.anna.ask(type="fetch", id="m1", ref="3")
        self.assertEqual((refused["code"], refused["ref"]), ("busy", "3"))
        self.assertEqual(refused["retry_after"], RETRY_WAITING)
        self.house.pool.answer("hej")
        self.assertEqual([a["ref"] for a in self.anna.sent], ["0", "1", "2"])
        self.assertEqual({a["type"] for a in self.anna.sent}, {"transcript"})


class SettingsTests(SynchronousTestCase):
    """Limits that do not go together."""

    def test_theLongestRecordingMustFit(self) -> None:
        local = {"listen": ("unix:/t",)}
        for most, owner, queue, good in (
            (10.0, 10.0, 10.0, True),
            (10.0, 10.0, 20.0, True),
            (10.1, 10.0, 20.0, False),
            (10.0, 20.1, 20.0, False),
            (21.0, 30.0, 20.0, False),
        ):
            contradiction = Settings.of(
                max_seconds=most,
                max_queue_seconds_per_owner=owner,
                max_queue_seconds=queue,
                **local,
            ).contradiction()
            self.assertEqual(contradiction is None, good, (most, owner, queue))
            if contradiction is not None:
                self.assertIn("the longest recording would never be taken", contradiction)

    def test_pings(self) -> None:
        [option] = [option for option in OPTIONS if option.key == "ping-seconds"]
        for good in (2, "2", 2.5, 3600):
            self.assertEqual(option.check(good), float(good))
        wrong: object
        for wrong in (1.9, 0, -1, 3601, "nan", "inf", "x", True, []):
            error = self.assertRaises(WrongValue, option.check, wrong)
            self.assertEqual(str(error), "a number of seconds from 2 to 3600")

    def test_theDefaultsGoTogether(self) -> None:
        self.assertEqual(Settings.of().contradiction(), None)


class ConnectionsTests(SynchronousTestCase):
    """Connections in all and per address."""

    def setUp(self) -> None:
        self.factory = SessionFactory(no_session, Bounds(connections=3, per_address=2))

    def come(self, address: str | None) -> SessionProtocol:
        connection = SessionProtocol()
        connection.address = address
        self.factory.add(connection)
        return connection

    def test_theEdges(self) -> None:
        self.assertEqual(self.factory.full("a"), None)
        first, second = self.come("a"), self.come("a")
        self.assertEqual(self.factory.full("a"), "too many connections from your address")
        self.assertEqual(self.factory.full("b"), None)
        third = self.come("b")
        for address in ("a", "b", "c", None):
            self.assertEqual(self.factory.full(address), "too many connections")
        self.factory.remove(first)
        self.assertEqual(self.factory.full("a"), None)
        for each in (second, third):
            self.factory.remove(each)
        self.assertEqual(dict(self.factory._of_address), {})
        self.assertEqual(len(self.factory.connections), 0)

    def test_unixSocketsHaveNoAddress(self) -> None:
        """All of this machine's parties come from there."""
        for _ in range(3):
            self.assertEqual(self.factory.full(None), None)
            self.come(None)
        self.assertEqual(self.factory.full(None), "too many connections")


class UnsentTests(SynchronousTestCase):
    """Bytes that wait for a client that does not read."""

    def setUp(self) -> None:
        self.connection = connection = SessionProtocol()
        connection.factory = SessionFactory(no_session, Bounds(unsent=100))
        connection.state = connection.STATE_OPEN
        connection.peer = "a client"
        self.backlog = connection._backlog = _Backlog(connection.factory)
        self.sent: list[int] = []
        self.dropped: list[bool] = []
        self.patch(connection, "sendMessage", lambda data: self.sent.append(len(data)))
        self.patch(connection, "dropConnection", lambda abort: self.dropped.append(abort))

    def send(self, size: int) -> None:
        self.connection.send(b"x" * size)

    def test_theEdge(self) -> None:
        self.send(1000)
        self.backlog.pauseProducing()
        self.send(60)
        self.send(40)
        self.assertEqual((self.sent, self.dropped), ([1000, 60, 40], []))
        self.send(1)
        self.assertEqual((self.sent, self.dropped), ([1000, 60, 40], [True]))

    def test_whoReadsOnStartsAnew(self) -> None:
        for _ in range(10):
            self.backlog.pauseProducing()
            self.send(100)
            self.backlog.resumeProducing()
        self.assertEqual((len(self.sent), self.dropped), (10, []))
        self.assertEqual(self.connection.factory.unsent, 0)

    def test_whatFillsItCounts(self) -> None:
        self.patch(self.connection, "sendMessage", lambda data: self.backlog.pauseProducing())
        self.send(1000)
        self.assertEqual((self.connection.factory.unsent, self.dropped), (1000, []))
        self.send(1)
        self.assertEqual(self.dropped, [True])

    def test_allClientsTogether(self) -> None:
        """Many who stay below their own bound do not fill the memory either."""
        factory = self.connection.factory
        others = [_Backlog(factory) for _ in range(ALL_UNSENT)]
        self.backlog.pauseProducing()
        for other in others:
            other.add(95)
        self.send(80)
        self.assertEqual((factory.unsent, self.dropped), (1600, []))
        self.send(1)
        self.assertEqual(self.dropped, [True])
        for each in (*others, self.backlog):
            each.clear()
        self.assertEqual(factory.unsent, 0)


class Transport(StringTransport):
    """Takes it that there is no producer, as TCP does."""

    def unregisterProducer(self) -> None:
        """Forget the producer."""
        self.producer = None


class SocketCase(SynchronousTestCase):
    """Websockets over transports in memory, on the clock of a house."""

    def setUp(self) -> None:
        self.house = House(Path(self.mktemp()))
        self.patch(txaio.config, "loop", self.house.clock)

    def tearDown(self) -> None:
        self.assertEqual(self.house.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def connect(self, bounds: Bounds) -> tuple[Any, Transport]:
        """A connection whose handshake has not begun."""
        factory = SessionFactory(lambda peer: Session(self.house.host, peer), bounds)
        protocol = factory.buildProtocol(None)
        transport = Transport()
        protocol.makeConnection(transport)
        return protocol, transport

    def shake(self, protocol: Any, origin: str | None = None) -> None:
        """Ask for a websocket."""
        lines = [
            "GET /ws HTTP/1.1",
            "Host: localhost:6000",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
            *([] if origin is None else [f"Origin: {origin}"]),
        ]
        protocol.dataReceived("\r\n".join([*lines, "", ""]).encode())

    def lose(self, protocol: Any) -> None:
        """It is over."""
        protocol.connectionLost(Failure(connectionDone.value))
        self.assertEqual(protocol.factory.connections, set())


class PingTests(SocketCase):
    """Clients are pinged, and dropped when they do not answer."""

    def setUp(self) -> None:
        super().setUp()
        self.protocol, self.transport = self.connect(Bounds(ping_seconds=30.0))
        self.shake(self.protocol)
        self.protocol.dataReceived(frame(TEXT, b'{"type":"hello","party":"anna"}'))
        self.transport.clear()

    def pinged(self) -> bytes:
        """The payload of the ping that came; nothing where none did."""
        sent: bytes = self.transport.value()
        self.transport.clear()
        self.assertIn(sent[:1], (b"", bytes([0x80 | PING])))
        return sent[2:]

    # Autobahn's timers ring within a second.

    def test_whoAnswersStays(self) -> None:
        for _ in range(5):
            self.house.clock.advance(29)
            self.assertEqual(self.pinged(), b"")
            self.house.clock.advance(1)
            payload = self.pinged()
            self.assertTrue(payload)
            self.house.clock.advance(29)
            self.protocol.dataReceived(frame(PONG, payload))
        self.assertFalse(self.transport.disconnecting)
        self.lose(self.protocol)

    def test_whoDoesNotIsDropped(self) -> None:
        self.house.clock.advance(30)
        self.assertTrue(self.pinged())
        self.house.clock.advance(29)
        self.assertFalse(self.transport.disconnecting)
        self.house.clock.advance(1)
        self.assertTrue(self.transport.disconnecting)
        self.lose(self.protocol)
        self.assertEqual(len(self.house.doorkeeper.parties), 0)


class OriginTests(SocketCase):
    """Of which sites browsers' pages may connect."""

    def allowed(self, origin: str | None, *bounds: str) -> bool:
        """Whether a handshake from there succeeds."""
        protocol, transport = self.connect(Bounds(origins=tuple(bounds)))
        self.shake(protocol, origin)
        status = int(transport.value().split()[1])
        self.lose(protocol)
        self.assertIn(status, (101, 400, 403))
        return status == 101

    def test_otherPrograms(self) -> None:
        self.assertTrue(self.allowed(None))
        self.assertTrue(self.allowed(None, "https://example.org"))

    def test_thisMachines(self) -> None:
        for host in ("localhost", "127.0.0.1", "[::1]"):
            for origin in (f"http://{host}", f"https://{host}", f"http://{host}:8080"):
                self.assertTrue(self.allowed(origin), origin)

    def test_nullAndFiles(self) -> None:
        for origin in ("null", "NULL", "file:///home/anna/page.html", "file://"):
            self.assertFalse(self.allowed(origin), origin)
            self.assertFalse(self.allowed(origin, "https://example.org"), origin)

    def test_others(self) -> None:
        mine = "https://example.org"
        self.assertFalse(self.allowed(mine))
        self.assertTrue(self.allowed(mine, mine))
        self.assertTrue(self.allowed("https://example.org:443", mine))
        self.assertTrue(self.allowed("HTTPS://EXAMPLE.ORG", mine))
        self.assertTrue(self.allowed("http://a.example:81", mine, "http://a.example:81"))
        for other in (
            "http://example.org",
            "https://example.org:8443",
            "https://www.example.org",
            "https://example.org.evil.example",
            "https://exampleXorg",
            "https://evil-example.org",
            "http://localhost.evil.example",
            "http://evil.example/localhost",
            "http://localhost@evil.example",
            "http://127.0.0.1.evil.example:80",
            "ftp://localhost",
            "",
            "rubbish",
        ):
            self.assertFalse(self.allowed(other, mine), other)

    def test_addressesThatLookLikeThisMachines(self) -> None:
        """An IPv6 address has brackets and colons, which are no pattern."""
        for origin in (
            "http://[::ffff:192.0.2.1]",
            "http://[::ffff:c000:201]",
            "http://[::2]",
            "http://[1::1]",
            "http://[2001:db8::1]",
            "http://1",
        ):
            self.assertFalse(self.allowed(origin), origin)
        mine = "http://[2001:db8::1]:8080"
        self.assertTrue(self.allowed(mine, mine))
        self.assertFalse(self.allowed("http://[2001:db8::2]:8080", mine))
