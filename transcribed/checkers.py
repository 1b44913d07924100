"""What ``--auth`` may name: our two kinds of checkers as plugins of :mod:`twisted.cred.strcred`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twisted.cred.strcred import ICheckerFactory, InvalidAuthArgumentString
from twisted.plugin import IPlugin
from zope.interface import implementer

from transcribed.credentials import IBearerToken
from transcribed.endpoints import fields

# Cryptography takes a tenth of a second, and these plugins are loaded for every twistd.
if TYPE_CHECKING:
    from transcribed.tokens import TokenChecker
    from transcribed.webtokens import WebTokenChecker


@implementer(ICheckerFactory, IPlugin)
class TokenCheckerFactory:
    """``tokens:FILE``."""

    authType = "tokens"
    argStringFormat = "A file of transcribed token."
    authHelp = "Tokens of the parties, one each: see transcribed token --help."
    credentialInterfaces = (IBearerToken,)

    def generateChecker(self, argstring: str) -> TokenChecker:
        """Raises :exc:`InvalidAuthArgumentString`, :exc:`OSError`, or :exc:`ValueError`."""
        from transcribed.tokens import TokenChecker

        [path], _ = _arguments(argstring, 1, ())
        return TokenChecker(Path(path).expanduser())


@implementer(ICheckerFactory, IPlugin)
class WebTokenCheckerFactory:
    """``jwt:FILE[:audience=A][:issuer=I]``."""

    authType = "jwt"
    argStringFormat = "FILE[:audience=A][:issuer=I]"
    authHelp = (
        "JSON web tokens. FILE holds a public key or a certificate in PEM, a JWK set, or a shared\n"
        "secret of 32 bytes or more."
    )
    credentialInterfaces = (IBearerToken,)

    def generateChecker(self, argstring: str) -> WebTokenChecker:
        """Raises :exc:`InvalidAuthArgumentString`, :exc:`OSError`, or :exc:`ValueError`."""
        from transcribed.webtokens import WebTokenChecker

        [path], named = _arguments(argstring, 1, ("audience", "issuer"))
        return WebTokenChecker(Path(path).expanduser(), named.get("audience"), named.get("issuer"))


def _arguments(
    argstring: str, count: int, names: tuple[str, ...]
) -> tuple[list[str], dict[str, str]]:
    plain, named = fields(argstring)
    if len(plain) != count or not all(plain) or not {*named} <= {*names}:
        raise InvalidAuthArgumentString(
            "a file is needed" + "".join(f", {name}=… may follow" for name in names)
        )
    return plain, named
