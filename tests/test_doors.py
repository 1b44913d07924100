"""How many TCP connections there may be, and for how long one may last that is no websocket."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from transcribed.doors import SPARE, Doors

SECONDS = 10.0


class Inside(Protocol):
    """What is spoken."""

    def __init__(self) -> None:
        self.data = b""
        self.lost = 0

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Count it."""
        self.lost += 1


class Transport(StringTransport):
    """Tells when it is aborted, as TCP does: later."""

    aborted = False

    def abortConnection(self) -> None:
        """Remember it."""
        self.aborted = True


@implementer(IOpenSSLServerConnectionCreator)
class NoCertificate:
    """Begins handshakes."""

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A server's side."""
        return SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)


class Connection:
    """Both sides of a door, also when it is shut."""

    def __init__(self, door: Any, address: Any) -> None:
        self.door = door
        self.inside = door.wrappedProtocol
        self.pipe = Transport(peerAddress=address)
        door.makeConnection(self.pipe)

    @property
    def cut(self) -> bool:
        """Whether the daemon has ended it."""
        return self.pipe.aborted

    def leave(self) -> None:
        """It is over."""
        self.door.connectionLost(Failure(connectionDone.value))


class Case(SynchronousTestCase):
    """Doors for three websockets, two an address."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.doors = Doors(self.clock, SECONDS, 3, 2)
        self.factory = self.doors.wrap(Factory.forProtocol(Inside))
        self.open: list[Connection] = []

    def tearDown(self) -> None:
        for connection in self.open:
            connection.leave()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual((self.doors._inside, dict(self.doors._of_address)), (0, {}))

    def come(self, address: Any = None) -> Connection:
        """A connection from there, whether it is let in or not."""
        address = address or IPv4Address("TCP", "192.0.2.1", 5000)
        self.open.append(Connection(self.factory.buildProtocol(address), address))
        return self.open[-1]


class TimeTests(Case):
    """An absolute time, whatever comes meanwhile."""

    def test_whoIsSilent(self) -> None:
        door = self.come()
        self.clock.advance(SECONDS - 0.1)
        self.assertFalse(door.cut)
        self.clock.advance(0.1)
        self.assertTrue(door.cut)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_whoTrickles(self) -> None:
        """A byte of a header each second buys no time."""
        door = self.come()
        for _ in range(9):
            self.clock.advance(1.0)
            door.door.dataReceived(b"x")
        self.assertFalse(door.cut)
        self.clock.advance(1.0)
        self.assertTrue(door.cut)
        self.assertEqual(door.inside.data, b"x" * 9)

    def test_aWebsocketMayStay(self) -> None:
        door = self.come()
        door.door.opened()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(10 * SECONDS)
        self.assertFalse(door.cut)
        door.door.opened()

    def test_whoGoesBefore(self) -> None:
        door = self.come()
        self.open.pop().leave()
        self.assertEqual((door.inside.lost, self.clock.getDelayedCalls()), (1, []))

    def test_tlsThatNeverEnds(self) -> None:
        """Its handshake is within the time, since it is within the doors."""

        inner = Factory.forProtocol(Inside)
        tls = TLSMemoryBIOFactory(NoCertificate(), False, inner, self.clock)
        self.factory = self.doors.wrap(tls)
        door = self.come()
        # The beginning of a record of 16 KiB, which never comes.
        for byte in b"\x16\x03\x01\x40\x00\x01":
            self.clock.advance(1.0)
            door.door.dataReceived(bytes([byte]))
        self.clock.advance(SECONDS)
        self.assertTrue(door.cut)


class CountTests(Case):
    """So many, and a few to spare for what becomes no websocket."""

    def test_fromOneAddress(self) -> None:
        for number in range(2 + SPARE):
            self.assertFalse(self.come().cut, number)
        refused = self.come()
        self.assertTrue(refused.cut)
        # Another one notices nothing, while there is room for it.
        self.assertFalse(self.come(IPv4Address("TCP", "192.0.2.2", 1)).cut)
        self.open.pop(0).leave()
        self.assertFalse(self.come().cut)
        self.assertTrue(self.come().cut)

    def test_inAll(self) -> None:
        for number in range(3 + SPARE):
            self.assertFalse(self.come(IPv4Address("TCP", f"192.0.2.{number}", 5000)).cut)
        address: object
        for address in (IPv4Address("TCP", "203.0.113.1", 1), UNIXAddress(b"/socket")):
            self.assertTrue(self.come(address).cut)
        self.open.pop(0).leave()
        self.assertFalse(self.come(UNIXAddress(b"/socket")).cut)
        self.assertTrue(self.come(UNIXAddress(b"/socket")).cut)

    def test_anIPv6NetworkIsOneAddress(self) -> None:
        for number in range(2 + SPARE):
            self.come(IPv6Address("TCP", f"2001:db8::{number:x}", 5000))
        self.assertTrue(self.come(IPv6Address("TCP", "2001:db8::ffff:1", 1)).cut)
        self.assertFalse(self.come(IPv6Address("TCP", "2001:db8:0:1::1", 1)).cut)

    def test_unixSocketsAreNoAddress(self) -> None:
        for _ in range(3 + SPARE):
            self.assertFalse(self.come(UNIXAddress(b"/socket")).cut)
        self.assertEqual(dict(self.doors._of_address), {})

    def test_throughAllPortsTogether(self) -> None:
        for _ in range(2 + SPARE):
            self.come()
        self.factory = self.doors.wrap(Factory.forProtocol(Inside))
        self.assertTrue(self.come().cut)

    def test_whoIsRefusedIsNotHeard(self) -> None:
        for _ in range(2 + SPARE):
            self.come()
        calls = len(self.clock.getDelayedCalls())
        refused = self.come()
        refused.door.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual(refused.inside.data, b"")
        self.assertEqual(len(self.clock.getDelayedCalls()), calls)
        refused.leave()
        self.assertEqual(self.doors._inside, 2 + SPARE)
        self.assertEqual(refused.inside.lost, 0)

    def test_whatIsOverIsCountedOnce(self) -> None:
        first, second = self.come(), self.come()
        first.leave()
        first.leave()
        self.assertEqual((self.doors._inside, first.inside.lost), (1, 1))
        first.door.dataReceived(b"late")
        self.assertEqual(first.inside.data, b"")
        second.leave()
