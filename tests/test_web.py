"""The pages of the port: what they say, to whom, and how they are refused."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, cast

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from transcribed.interfaces import PoolStatus
from transcribed.web import Probe, make_site

FORM = "content-type: application/x-www-form-urlencoded\r\n"


class Answer(NamedTuple):
    """What came back."""

    code: int
    headers: dict[str, str]
    body: bytes


class Case(SynchronousTestCase):
    """A site whose daemon is as the test says."""

    def setUp(self) -> None:
        self.pool = PoolStatus("fake", "float32", 2, 1, 2, None, None)
        self.refusal: str | None = None
        self.accepts: list[str] = []
        self.clock = Clock()
        self.probe = Probe(lambda: self.pool, lambda: 3, lambda: self.refusal)
        self.site = make_site(cast(Any, None), self.probe, self.metrics)
        self.site.reactor = self.clock

    def metrics(self, accept: str) -> tuple[bytes, str]:
        self.accepts.append(accept)
        return b"a_metric 1\n", "text/plain; version=9"

    def loading(self) -> None:
        self.pool = PoolStatus("fake", None, 2, 1, 0, None, "worker 1 hung")

    def connect(self) -> StringTransportWithDisconnection:
        transport = StringTransportWithDisconnection()
        transport.protocol = self.site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
        transport.protocol.makeConnection(transport)
        return transport

    def raw(self, request: str) -> bytes:
        transport = self.connect()
        transport.protocol.dataReceived(request.encode())
        return bytes(transport.value())

    def ask(self, path: str, method: str = "GET", more: str = "", body: str = "") -> Answer:
        answer = self.raw(f"{method} {path} HTTP/1.1\r\nhost: x\r\n{more}\r\n{body}")
        head, _, rest = answer.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = [line.split(": ", 1) for line in lines]
        return Answer(int(status.split()[1]), {k.lower(): v for k, v in headers}, rest)

    def look(self, path: str) -> tuple[int, str, str | None]:
        """The code, and the status and the problem that are told."""
        answer = self.ask(path)
        self.assertEqual(answer.headers["content-type"], "application/json")
        told = json.loads(answer.body)
        return answer.code, told["status"], told["problem"]


class ProbeTests(Case):
    """/health and /ready."""

    def test_all_is_well(self) -> None:
        answer = self.ask("/ready")
        self.assertEqual(answer.code, 200)
        told = json.loads(answer.body)
        self.assertEqual(
            {key: told[key] for key in ("status", "ready_workers", "queued", "problem")},
            {"status": "ok", "ready_workers": 2, "queued": 3, "problem": None},
        )
        self.assertEqual(self.ask("/health").body, answer.body)
        self.assertTrue(self.probe.ready())

    def test_no_worker(self) -> None:
        self.loading()
        self.assertEqual(self.look("/ready"), (503, "loading", "worker 1 hung"))
        self.assertEqual(self.look("/health"), (200, "ok", "worker 1 hung"))
        self.assertFalse(self.probe.ready())

    def test_uploads_would_be_refused(self) -> None:
        self.refusal = "the queue is full"
        self.assertEqual(self.look("/ready"), (503, "refusing", "the queue is full"))
        self.assertEqual(self.look("/health"), (200, "ok", "the queue is full"))
        self.assertFalse(self.probe.ready())

    def test_both(self) -> None:
        self.loading()
        self.refusal = "the disk quota is used up"
        problem = "worker 1 hung; the disk quota is used up"
        self.assertEqual(self.look("/ready"), (503, "loading", problem))

    def test_it_is_not_kept_by_caches(self) -> None:
        self.assertEqual(self.ask("/ready").headers["cache-control"], "no-store")


class MetricsTests(Case):
    """/metrics."""

    def test_the_type_is_as_it_is_asked_for(self) -> None:
        answer = self.ask("/metrics", more="accept: a/b\r\naccept: c/d;q=0.5, e/f\r\n")
        self.assertEqual((answer.code, answer.body), (200, b"a_metric 1\n"))
        self.assertEqual(answer.headers["content-type"], "text/plain; version=9")
        self.ask("/metrics")
        self.assertEqual(self.accepts, ["a/b,c/d;q=0.5, e/f", ""])


class MannersTests(Case):
    """Methods, paths, headers and bodies."""

    def test_head(self) -> None:
        with capturedLogs() as logged:
            for path in ("/health", "/ready", "/metrics", "/nothing"):
                asked, headed = self.ask(path), self.ask(path, "HEAD")
                self.assertEqual((headed.code, headed.body), (asked.code, b""))
                self.assertEqual(headed.headers["content-length"], str(len(asked.body)))
        self.assertEqual(logged, [])

    def test_other_methods(self) -> None:
        for path in ("/health", "/ready", "/metrics"):
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "BREW"):
                answer = self.ask(path, method)
                self.assertEqual((answer.code, answer.headers["allow"]), (405, "GET, HEAD"))
                self.assertNotIn(b"<", answer.body)

    def test_nothing_is_there(self) -> None:
        for path in ("/", "/nothing", "/health/", "/health/more", "/%2e%2e/etc", "//health"):
            answer = self.ask(path)
            self.assertEqual((answer.code, answer.body), (404, b"not found\n"), path)
            self.assertEqual(answer.headers["content-type"], "text/plain; charset=utf-8")

    def test_nobody_is_told_what_it_is_made_of(self) -> None:
        asked = [("GET", "/health"), ("GET", "/nothing"), ("POST", "/ready"), ("GET", "*")]
        for method, path in [*asked, ("HEAD", "/metrics"), ("OPTIONS", "*")]:
            self.assertEqual(self.ask(path, method).headers["server"], "transcribed")

    def test_a_page_that_fails(self) -> None:
        self.patch(self, "pool", None)
        answer = self.ask("/health")
        self.assertEqual((answer.code, answer.headers["server"]), (500, "transcribed"))
        self.assertNotIn(b"AttributeError", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)

    def test_bodies_are_not_kept(self) -> None:
        big = "x=1&" * 100_000
        for more in (f"content-length: {len(big)}\r\n", f"{FORM}content-length: {len(big)}\r\n"):
            transport = self.connect()
            head = f"POST /health HTTP/1.1\r\nhost: x\r\n{more}\r\n"
            transport.protocol.dataReceived((head + big[:-1]).encode())
            content = cast(Any, transport.protocol)._channel.requests[0].content
            content.seek(0)
            self.assertEqual(content.read(), b"")
            self.assertEqual(transport.value(), b"")
            transport.protocol.dataReceived(big[-1:].encode())
            self.assertTrue(transport.value().startswith(b"HTTP/1.1 405 "))

    def test_one_after_the_other(self) -> None:
        answers = self.raw("GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 3)
        self.assertEqual(answers.count(b"HTTP/1.1 200 OK"), 3)
