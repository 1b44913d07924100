"""What every TCP connection is held to before it is a websocket: how many, and for how long.

A websocket too many is told so (1013). What does not even get that far, or does not want to be one,
is cut off without a word.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IDelayedCall, IProtocolFactory, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from transcribed.addresses import source
from transcribed.tally import Tally

SPARE = 100
"""So many connections there may be besides websockets: handshakes, probes, refusals."""


class Door(ProtocolWrapper):
    """One TCP connection; whatever is spoken over it is inside."""

    factory: _DoorFactory
    transport: Any
    address: str | None = None
    _counted = False
    _deadline: IDelayedCall | None = None

    def makeConnection(self, transport: Any) -> None:
        """It is there; see :class:`twisted.internet.interfaces.IProtocol`."""
        self.address = source(transport.getPeer())
        if not self.factory.doors.enter(self.address):
            transport.abortConnection()
            return
        self._counted = True
        doors = self.factory.doors
        self._deadline = doors.clock.callLater(doors.seconds, self._late)
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    def _late(self) -> None:
        self._deadline = None
        self.transport.abortConnection()

    def opened(self) -> None:
        """It is a websocket now, and may stay."""
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.cancel()

    def dataReceived(self, data: bytes) -> None:
        """Bytes came."""
        if self._counted:
            super().dataReceived(data)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is gone."""
        if self._counted:
            self._counted = False
            self.opened()
            self.factory.doors.leave(self.address)
            super().connectionLost(reason)  # type: ignore[no-untyped-call]


class _DoorFactory(WrappingFactory[Door]):
    """Makes doors, of one port."""

    protocol = Door
    noisy = False

    def __init__(self, factory: IProtocolFactory, doors: Doors) -> None:
        super().__init__(factory)  # type: ignore[no-untyped-call]
        self.doors = doors


class Doors:
    """How many TCP connections there are, through all ports.

    :param seconds: so long one may last that is no websocket, with all that it does: handshakes,
        TLS's included, and HTTP requests.
    :param connections: the most websockets.
    :param per_address: the most of one address.
    """

    def __init__(
        self, clock: IReactorTime, seconds: float, connections: int, per_address: int
    ) -> None:
        self.clock = clock
        self.seconds = seconds
        self._most = connections + SPARE
        self._most_of_address = per_address + SPARE
        self._inside = 0
        self._of_address = Tally()

    def wrap(self, factory: IProtocolFactory) -> IProtocolFactory:
        """Have what `factory` makes behind these doors."""
        return _DoorFactory(factory, self)

    def enter(self, address: str | None) -> bool:
        """One more, if there is room; answers whether there was."""
        if self._inside >= self._most:
            return False
        if address is not None:
            if self._of_address[address] >= self._most_of_address:
                return False
            self._of_address[address] += 1
        self._inside += 1
        return True

    def leave(self, address: str | None) -> None:
        """One less."""
        self._inside -= 1
        if address is not None:
            self._of_address.less(address)
