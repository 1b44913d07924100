"""The HTTP side of the port: ``/ws`` for websockets, ``/health``, ``/ready`` and ``/metrics``.

Whoever reaches the port may read the latter three: they name nobody, and no transcript.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import msgspec
from autobahn.twisted.resource import WebSocketResource
from twisted.web.http import NOT_ALLOWED, NOT_FOUND, OK, SERVICE_UNAVAILABLE
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from transcribed import __version__
from transcribed.interfaces import PoolStatus
from transcribed.websocket import SessionFactory


class _Health(msgspec.Struct):
    status: str
    version: str
    model: str
    precision: str | None
    workers: int
    threads: int
    ready_workers: int
    queued: int
    warning: str | None
    problem: str | None


class Probe:
    """How the daemon is.

    :param pool: how the recognizers are.
    :param queued: how many recordings are waiting or in work.
    :param refusing: why any upload would be refused right now; None where it would not.
    """

    def __init__(
        self,
        pool: Callable[[], PoolStatus],
        queued: Callable[[], int],
        refusing: Callable[[], str | None],
    ) -> None:
        self._pool = pool
        self._queued = queued
        self._refusing = refusing

    def ready(self) -> bool:
        """Whether a recording would be taken in and transcribed now."""
        return self._status() == "ok"

    def _status(self) -> str:
        if not self._pool().ready:
            return "loading"
        return "ok" if self._refusing() is None else "refusing"

    def health(self, request: Request) -> bytes:
        """The page that is well as long as the daemon is there at all."""
        return self._tell(request, "ok")

    def readiness(self, request: Request) -> bytes:
        """The page that is well while the daemon is :meth:`ready`; 503 otherwise."""
        return self._tell(request, self._status())

    def _tell(self, request: Request, status: str) -> bytes:
        pool = self._pool()
        health = _Health(
            status=status,
            version=__version__,
            model=pool.model,
            precision=pool.precision,
            workers=pool.workers,
            threads=pool.threads,
            ready_workers=pool.ready,
            queued=self._queued(),
            warning=pool.warning,
            problem="; ".join(filter(None, (pool.problem, self._refusing()))) or None,
        )
        request.setResponseCode(OK if status == "ok" else SERVICE_UNAVAILABLE)
        request.setHeader(b"content-type", b"application/json")
        return msgspec.json.encode(health) + b"\n"


class _Page(Resource):
    """Something to read, by GET and HEAD.

    :param read: answers with the body, and sets the status and the content type.
    """

    def __init__(self, read: Callable[[Request], bytes]) -> None:
        Resource.__init__(self)
        self._read = read

    def getChild(self, path: bytes, request: Any) -> Resource:
        """Nothing is below it but what was put there."""
        return _Page(_missing)

    def render(self, request: Request) -> bytes:
        """The body; an error for other methods."""
        body = (self._read if request.method in (b"GET", b"HEAD") else _not_allowed)(request)
        request.setHeader(b"cache-control", b"no-store")
        # Of a HEAD's answer Twisted would write into the log that it has no body to have.
        request.setHeader(b"content-length", b"%d" % len(body))
        return b"" if request.method == b"HEAD" else body


def _missing(request: Request) -> bytes:
    request.setResponseCode(NOT_FOUND)
    request.setHeader(b"content-type", b"text/plain; charset=utf-8")
    return b"not found\n"


def _not_allowed(request: Request) -> bytes:
    request.setResponseCode(NOT_ALLOWED)
    request.setHeader(b"allow", b"GET, HEAD")
    request.setHeader(b"content-type", b"text/plain; charset=utf-8")
    return b"only GET and HEAD are allowed\n"


class _Nowhere(BytesIO):
    """What a request's body is written to: nothing here takes one, whatever its length."""

    def write(self, data: Any) -> int:
        """Forget it."""
        return len(data)


class _Request(Request):
    """Does not say which version of Twisted answers it."""

    def write(self, data: bytes) -> None:
        """Send some of the answer."""
        self.responseHeaders.setRawHeaders("server", ["transcribed"])
        Request.write(self, data)


class _Site(Site):
    """A site without an access log: a line for every probe says nothing."""

    noisy = False

    def log(self, request: Any) -> None:
        """Say nothing."""

    def getContentFile(self, length: int | None) -> BytesIO:
        """Where a request's body goes; Twisted would keep it all, in a file when it is big."""
        return _Nowhere()


def make_site(
    sessions: SessionFactory, probe: Probe, metrics: Callable[[str], tuple[bytes, str]]
) -> Site:
    """The site of the daemon's port.

    How long an HTTP connection may last is up to the :mod:`transcribed.doors` that it comes in by.

    :param metrics: the metrics as text, and their content type, for an ``Accept`` header.
    """

    def read_metrics(request: Request) -> bytes:
        accept = request.requestHeaders.getRawHeaders("accept", [])
        body, content_type = metrics(",".join(accept))
        request.setHeader(b"content-type", content_type.encode())
        return body

    root = _Page(_missing)
    root.putChild(b"ws", WebSocketResource(sessions))
    root.putChild(b"health", _Page(probe.health))
    root.putChild(b"ready", _Page(probe.readiness))
    root.putChild(b"metrics", _Page(read_metrics))
    site: Site = _Site(  # type: ignore[no-untyped-call]
        root, _Request, timeout=None, parsePOSTFormSubmission=False
    )
    return site
