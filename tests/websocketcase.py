"""The daemon's port in memory: a house behind its doors and its site, without sockets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import txaio
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import House
from tests.memoryclient import PONG, Client
from transcribed.doors import Doors
from transcribed.session import Session
from transcribed.web import Probe, make_site
from transcribed.websocket import Bounds, SessionFactory

BOUNDS = Bounds()


def make_server(house: House) -> tuple[Any, SessionFactory]:
    """The port of a house, and the factory of its websockets, both on the house's clock.

    The one place that knows how these are made. The clock must be txaio's loop already.
    """
    factory = SessionFactory(lambda peer: Session(house.host, peer), BOUNDS)
    probe = Probe(house.pool.status, lambda: len(house.scheduler), house.desk.refusing)
    site = make_site(factory, probe, lambda accept: (b"", "text/plain"))
    site.reactor = house.clock
    doors = Doors(house.clock, BOUNDS.handshake_seconds, BOUNDS.connections, BOUNDS.per_address)
    return doors.wrap(site), factory


class Case(SynchronousTestCase):
    """A house with a port, and Anna on the line."""

    def setUp(self) -> None:
        self.house = House(Path(self.mktemp()))
        self.patch(txaio.config, "loop", self.house.clock)
        self.port, self.factory = make_server(self.house)
        self.anna = self.connect()

    def tearDown(self) -> None:
        self.anna.vanish()
        self.assertEqual((self.factory.connections, self.port.protocols), (set(), {}))
        self.assertEqual(self.house.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def connect(self, party: str | None = "anna") -> Client:
        """A client that has shaken hands and, where it is somebody, has said hello."""
        client = Client(self.port)
        client.open()
        self.assertIn(" 101 ", client.status)
        if party is not None:
            self.assertEqual(client.ask(type="hello", party=party)["type"], "welcome")
        return client

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.house.clock.advance(seconds)
        self.anna.settle()

    def send(self, frames: Iterable[bytes], chop: str = "at once") -> None:
        """Anna sends frames: `at once`, `by frame`, or `by octet`."""
        pieces = list(frames)
        for piece in pieces if chop == "by frame" else [b"".join(pieces)]:
            self.anna.raw(piece, chop=1 if chop == "by octet" else None)

    def assertPong(self, payload: bytes) -> None:
        """The next that came is a pong."""
        self.assertEqual(self.anna.frames.pop(0), (PONG, payload))

    def assertClosed(self, code: int) -> None:
        """The server has closed with this code, and the connection is over."""
        self.assertEqual(self.anna.close_code(), code)
        self.assertTrue(self.anna.gone)
        self.assertFalse(self.anna.transport.aborted, "the client is shown a reset")

    def assertAlive(self) -> None:
        """The connection serves."""
        self.assertEqual(self.anna.ask(type="list", ref="alive")["ref"], "alive")


C = TypeVar("C", bound=type[Case])


def cases(check: str, table: dict[str, tuple[Any, ...]]) -> Callable[[C], C]:
    """A test for each case of the Autobahn test suite in `table`: `check` with its arguments."""

    def add(case: C) -> C:
        for number, arguments in table.items():

            def test(self: Case, arguments: tuple[Any, ...] = arguments) -> None:
                getattr(self, check)(*arguments)

            test.__name__ = "test_" + number.replace(".", "_")
            assert not hasattr(case, test.__name__), number
            test.__qualname__ = f"{case.__qualname__}.{test.__name__}"
            setattr(case, test.__name__, test)
        return case

    return add


def request(ref: str = "r", size: int = 0) -> bytes:
    """A request that is answered with `ref`, of so many bytes where `size` says so."""
    bare = json.dumps({"type": "list", "ref": ref}, ensure_ascii=False).encode()
    if size > len(bare) + 9:
        bare = bare[:-1] + b',"pad":"' + b"x" * (size - len(bare) - 9) + b'"}'
    return bare.ljust(size)
