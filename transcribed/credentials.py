"""Credentials of :mod:`twisted.cred`: what a client shows, and what a checker finds in it.

Imports nothing that imports a reactor: the plugins of ``twisted/plugins`` do import it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hmac import compare_digest

from twisted.cred.credentials import ICredentials, IUsernamePassword
from zope.interface import Interface, implementer


class IBearerToken(ICredentials):
    """A token that alone says who somebody is."""

    def token() -> str:
        """The token."""

    def claim() -> str | None:
        """The party that the client says it is; a checker must refuse a token of another."""


class IClaim(ICredentials):
    """A name without any proof: for where everybody is who they say."""

    def claim() -> str | None:
        """The party that the client says it is."""


class IReloads(Interface):
    """A checker whose file may change."""

    def reload() -> None:
        """Read the file again; keeps to what it had where it cannot.

        Raises :exc:`OSError` or :exc:`ValueError`.
        """


class IRemembers(Interface):
    """A checker that knows at once what it has found good before."""

    def remembers(credentials: object) -> bool:
        """Whether these very credentials were found good, and still are."""


def _good() -> bool:
    return True


@dataclass(frozen=True)
class Identity:
    """Who somebody was found to be: the avatar id of our checkers.

    :ivar until: seconds since the epoch at which the credentials end, if they do.
    :ivar good: whether they are still good, e.g. not revoked.
    """

    party: str
    until: float | None = None
    good: Callable[[], bool] = field(default=_good, compare=False)


@implementer(IBearerToken)
class Bearer:
    """A token, and who the client says it is, if it does."""

    def __init__(self, token: str, claim: str | None) -> None:
        self._token = token
        self._claim = claim

    def token(self) -> str:
        """The token."""
        return self._token

    def claim(self) -> str | None:
        """The party that the client says it is."""
        return self._claim


@implementer(IBearerToken, IUsernamePassword)
class PartyAndToken(Bearer):
    """Both: also a name and a password, for Twisted's own checkers.

    :ivar username: the party, in UTF-8.
    :ivar password: the token, in UTF-8.
    """

    def __init__(self, token: str, claim: str) -> None:
        super().__init__(token, claim)
        # Half a surrogate pair can be in a party and has no UTF-8.
        self.username = claim.encode("utf-8", "replace")
        self.password = token.encode("utf-8", "replace")

    def checkPassword(self, password: bytes) -> bool:
        """Whether `password` is the token."""
        return compare_digest(self.password, password)


@implementer(IClaim)
class Claim:
    """Who the client says it is."""

    def __init__(self, claim: str | None) -> None:
        self._claim = claim

    def claim(self) -> str | None:
        """The party that the client says it is."""
        return self._claim
