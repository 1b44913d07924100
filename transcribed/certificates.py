"""The key and certificates of a TLS server, which may be read again while it runs."""

from __future__ import annotations

import re
from pathlib import Path

from OpenSSL import crypto
from OpenSSL.SSL import Connection
from twisted.internet import ssl
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@implementer(IOpenSSLServerConnectionCreator)
class Certificate:
    """Encrypts connections, with TLS 1.2 or newer.

    :param named: the files, as in an endpoint: ``privateKey``; ``certKey``, by default the same
        file; ``extraCertChain``, besides those that follow in ``certKey``.

    Raises :exc:`OSError`, :exc:`ValueError` or :exc:`OpenSSL.SSL.Error`.
    """

    def __init__(self, named: dict[str, str]) -> None:
        key = Path(named["privateKey"]).expanduser()
        self._key = key
        self._certificate = Path(named["certKey"]).expanduser() if "certKey" in named else key
        chain = named.get("extraCertChain")
        self._chain = Path(chain).expanduser() if chain else None
        self.reload()

    def reload(self) -> None:
        """Read the files again, for new connections. Raises as above, and nothing has changed."""
        found = _PEM.findall(self._certificate.read_bytes())
        if not found:
            raise ValueError(f"there is no certificate in {self._certificate}")
        chain = found[1:] + (_PEM.findall(self._chain.read_bytes()) if self._chain else [])
        key = self._key.read_bytes()
        if b"ENCRYPTED" in key:
            # OpenSSL would ask for it on the terminal, and the daemon would stand still.
            raise ValueError(f"the key in {self._key} has a password; it must have none")
        options = ssl.CertificateOptions(
            privateKey=crypto.load_privatekey(crypto.FILETYPE_PEM, key, b""),
            certificate=ssl.Certificate.loadPEM(found[0]).original,
            extraCertChain=[ssl.Certificate.loadPEM(each).original for each in chain],
            raiseMinimumTo=ssl.TLSVersion.TLSv1_2,
        )
        # Finds out here, and not at the first client, whether they belong together.
        context = options.getContext()
        context.check_privatekey()
        self._context = context

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> Connection:
        """OpenSSL's side of a new connection."""
        return Connection(self._context, None)
