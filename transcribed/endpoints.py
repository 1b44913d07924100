"""Where the daemon may listen: Twisted's endpoint strings, and who would reach them.

Pure; :mod:`transcribed.listeners` does listen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from transcribed.addresses import is_loopback

KINDS = (
    "tcp:PORT:interface=ADDRESS, tcp6:PORT:interface=ADDRESS, "
    "ssl:PORT:privateKey=FILE:certKey=FILE, unix:PATH, or systemd:…"
)
_TLS_FIELDS = {"port", "privateKey", "certKey", "extraCertChain", "interface", "backlog"}


class WrongEndpoint(ValueError):
    """A description that is none; its text says what is allowed."""


def fields(text: str) -> tuple[list[str], dict[str, str]]:
    """The fields between colons, those without a name and those with one; ``\\`` quotes a colon."""
    plain, named = [], {}
    for part in re.split(r"(?<!\\):", text):
        name, equals, value = part.partition("=")
        value = re.sub(r"\\(.)", r"\1", value)
        if equals:
            named[name] = value
        else:
            plain.append(re.sub(r"\\(.)", r"\1", part))
    return plain, named


@dataclass(frozen=True)
class Endpoint:
    """Where to listen.

    :ivar text: as Twisted takes it.
    :ivar host: the address; None where it is known only when it is listened on, or is no address.
    :ivar tls: whether it is encrypted.
    """

    text: str
    kind: str
    host: str | None
    tls: bool

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Raises :exc:`WrongEndpoint`."""
        (kind, *plain), named = fields(text)
        if kind in ("tcp", "tcp6", "ssl"):
            port = named.get("port", plain[0] if plain else "")
            if not port.isdecimal() or int(port) > 65535:
                raise WrongEndpoint(f"{kind} with a port from 0 to 65535")
            host = named.get("interface", plain[1] if len(plain) > 1 and kind == "tcp" else "")
            if kind == "ssl" and not ("privateKey" in named and {*named} <= _TLS_FIELDS):
                raise WrongEndpoint("ssl:PORT:privateKey=FILE:certKey=FILE:interface=ADDRESS")
            return cls(text, kind, host or "every address", kind == "ssl")
        if kind not in ("unix", "systemd") or not (any(plain) or any(named)):
            raise WrongEndpoint(KINDS)
        if named.get("address") == "":
            raise WrongEndpoint(KINDS)
        if kind == "unix" and "mode" not in named:
            # Twisted's own default would let everybody on the machine in.
            text += ":mode=660"
        return cls(text, kind, None, False)

    def objection(self, host: str | None, has_auth: bool, insecure: bool) -> str | None:
        """Why it must not be listened on so, and what to do; None where it may.

        :param host: the address, where it is known.
        """
        if host is None or is_loopback(host):
            return None
        if not has_auth:
            return (
                "other machines reach it, and clients need no credentials: say --auth "
                "tokens:FILE, or listen on loopback (interface=127.0.0.1) or a unix socket"
            )
        if not self.tls and not insecure:
            return (
                "other machines reach it, and tokens and voices would cross the network in the "
                "clear: listen on ssl:PORT:privateKey=FILE:certKey=FILE, or say --insecure where "
                "something else encrypts"
            )
        return None
