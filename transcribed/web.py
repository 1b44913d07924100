"""The HTTP side of the port: ``/ws`` for websockets, ``/health`` and ``/ready`` for probes."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from autobahn.twisted.resource import WebSocketResource
from twisted.web.http import OK, SERVICE_UNAVAILABLE, Request
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource
from twisted.web.server import Site

from transcribed import __version__
from transcribed.interfaces import PoolStatus
from transcribed.websocket import SessionFactory

IDLE_SECONDS = 60
"""After so long without a request an HTTP connection is closed; websockets are not meant."""


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


class _Probe(Resource):
    """Answers with the daemon's state as JSON.

    :param needs_worker: whether to answer 503 while nothing could be transcribed.
    """

    isLeaf = True

    def __init__(
        self, status: Callable[[], PoolStatus], queued: Callable[[], int], needs_worker: bool
    ) -> None:
        Resource.__init__(self)
        self._status = status
        self._queued = queued
        self._needs_worker = needs_worker

    def render_GET(self, request: IRequest) -> bytes:
        """200, or 503."""
        pool = self._status()
        missing = self._needs_worker and not pool.ready
        request.setResponseCode(SERVICE_UNAVAILABLE if missing else OK)
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"cache-control", b"no-store")
        health = _Health(
            status="loading" if missing else "ok",
            version=__version__,
            model=pool.model,
            precision=pool.precision,
            workers=pool.workers,
            threads=pool.threads,
            ready_workers=pool.ready,
            queued=self._queued(),
            warning=pool.warning,
            problem=pool.problem,
        )
        return msgspec.json.encode(health) + b"\n"


class _Site(Site):
    """A site without an access log: a line for every probe says nothing."""

    noisy = False

    def log(self, request: Request) -> None:
        """Say nothing."""


def make_site(
    sessions: SessionFactory, status: Callable[[], PoolStatus], queued: Callable[[], int]
) -> Site:
    """The site of the daemon's port.

    :param queued: how many recordings are waiting or in work.
    """
    root = Resource()
    root.putChild(b"ws", WebSocketResource(sessions))
    root.putChild(b"health", _Probe(status, queued, needs_worker=False))
    root.putChild(b"ready", _Probe(status, queued, needs_worker=True))
    site: Site = _Site(root, timeout=IDLE_SECONDS)  # type: ignore[no-untyped-call]
    return site
