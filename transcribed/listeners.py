"""The ports that the daemon listens on, and their certificates."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import (
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    serverFromString,
)
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from transcribed.certificates import Certificate
from transcribed.doors import Doors
from transcribed.endpoints import Endpoint, fields

BACKLOG = 1024
"""So many TCP connections the system may have made that the daemon has not seen yet."""


class Listeners:
    """Listens for connections.

    :param site: serves them.
    :param doors: what they are held to.
    :param has_auth: whether clients need credentials.
    :param insecure: whether these may cross the network in the clear.
    :ivar ports: where it is listened on.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, site: IProtocolFactory, doors: Doors, has_auth: bool, insecure: bool
    ) -> None:
        self._reactor = reactor
        self._site = site
        self._doors = doors
        self._has_auth = has_auth
        self._insecure = insecure
        self._certificates: list[Certificate] = []
        self.ports: list[IListeningPort] = []

    def listen(self, text: str) -> str | None:
        """Listen on an endpoint; answers why not, where it cannot be."""
        endpoint = Endpoint.parse(text)
        failures: list[Failure] = []

        # maybeDeferred: what is wrong with the description itself is raised at once.
        maybeDeferred(self._open, endpoint).addCallbacks(self.ports.append, failures.append)
        if failures:
            if endpoint.kind == "systemd" and failures[0].check(LookupError):
                return "systemd has passed no such socket: is transcribed.socket started?"
            return _reason(failures[0].value)
        # Of a socket of systemd's, only now it is known who can reach it.
        host = getattr(self.ports[-1].getHost(), "host", None)
        return endpoint.objection(host, self._has_auth, self._insecure)

    def _open(self, endpoint: Endpoint) -> Deferred[IListeningPort]:
        made: Any
        factory = self._site
        (_, *plain), named = fields(endpoint.text)
        if endpoint.tls:
            certificate = Certificate(named)
            self._certificates.append(certificate)
            # TLS inside the doors: its handshake, too, has to come to an end.
            factory = TLSMemoryBIOFactory(certificate, False, factory, self._reactor)
            host = named.get("interface", "")
            port = int(named.get("port", plain[0] if plain else ""))
            backlog = int(named.get("backlog", BACKLOG))
            kind = TCP6ServerEndpoint if ":" in host else TCP4ServerEndpoint
            made = kind(self._reactor, port, backlog, host)
        else:
            own = "" if endpoint.kind == "systemd" or "backlog" in named else f":backlog={BACKLOG}"
            made = serverFromString(self._reactor, endpoint.text + own)
        listening: Deferred[IListeningPort] = made.listen(self._doors.wrap(factory))
        return listening

    def reload(self) -> None:
        """Read the certificates again, for new connections; what is not good is not taken."""
        for certificate in self._certificates:
            try:
                certificate.reload()
            except Exception as e:
                self._log.error("a certificate is as before: {reason}", reason=_reason(e))
            else:
                self._log.info("a certificate was read again")

    def stop(self) -> Deferred[None]:
        """Listen no more; fires when that is so."""
        stopped = gatherResults([maybeDeferred(port.stopListening) for port in self.ports])
        return stopped.addCallback(lambda _: None)


def _reason(error: Any) -> str:
    cause: Any = error.socketError if isinstance(error, CannotListenError) else error
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.filename}: {cause.strerror}" if cause.filename else cause.strerror
    try:
        # OpenSSL's queue of (library, function, reason).
        return ", ".join(entry[2] for entry in cause.args[0])
    except (IndexError, TypeError):
        return str(cause) or type(cause).__name__
