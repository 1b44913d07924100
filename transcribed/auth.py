"""Who may come in: a portal of :mod:`twisted.cred` whose avatars are parties, slow to guessers.

Without any checker everybody is who they say; see :mod:`transcribed.endpoints` for where that is
listened on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import LoginFailed, UnhandledCredentials
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred, DeferredLock, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import Attribute, Interface, implementer

from transcribed.credentials import (
    Bearer,
    Claim,
    IBearerToken,
    IClaim,
    Identity,
    IReloads,
    IRemembers,
    PartyAndToken,
)
from transcribed.errors import Unauthenticated

FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0
"""Seconds that the next try from an address waits after a wrong one, doubled by each more."""
FORGIVEN = 600.0
"""Seconds after its last wrong try at which an address is like any other again."""
MOST_ADDRESSES = 10_000
"""So many addresses with wrong tries are remembered, the latest ones."""
MOST_WAITING = 10_000
"""So many tries of one address may stand in line: after a restart all its clients come at once."""
ALL = ""
"""The line of all, which is no address."""
LONGEST_TIMER = 86400.0


class IParty(Interface):
    """An avatar: a party that has come in."""

    name = Attribute("Who it is.")


class Mind(Protocol):
    """The client's side of an avatar.

    :ivar closed: whether the client is gone.
    """

    closed: bool

    def dismiss(self, reason: str) -> None:
        """Its credentials are good no more: end its connection."""


@implementer(IParty)
class Party:
    """A party on one connection.

    :ivar name: who it is.
    :ivar identity: how that was found out.
    """

    def __init__(self, identity: Identity, mind: Mind) -> None:
        self.name = identity.party
        self.identity = identity
        self.mind = mind
        self.timer: IDelayedCall | None = None


@implementer(IRealm)
class Parties:
    """The realm: all parties that are in.

    :param clock: for timers.
    :param now: the time of day, in seconds since the epoch.
    """

    def __init__(self, clock: IReactorTime, now: Callable[[], float]) -> None:
        self._clock = clock
        self._now = now
        self._inside: set[Party] = set()

    def __len__(self) -> int:
        """How many avatars there are."""
        return len(self._inside)

    def requestAvatar(
        self, avatarId: Any, mind: Any, *interfaces: type[Interface]
    ) -> tuple[type[Interface], Party, Callable[[], None]]:
        """Let a party in; see :class:`twisted.cred.portal.IRealm`."""
        if IParty not in interfaces:
            # As IRealm wants it of a realm that has no such avatar; nobody here asks for another.
            raise NotImplementedError
        # Twisted's own checkers answer with a name in bytes.
        identity = avatarId if isinstance(avatarId, Identity) else Identity(_name(avatarId))
        party = Party(identity, mind)
        self._inside.add(party)
        if identity.until is not None:
            self._watch(party)
        return IParty, party, lambda: self._leave(party)

    def _watch(self, party: Party) -> None:
        """End it when its credentials do."""
        party.timer = None
        left = (party.identity.until or 0.0) - self._now()
        if left <= 0:
            self._dismiss(party, "the credentials have expired")
        else:
            # Not for ever: the time of day may be set.
            party.timer = self._clock.callLater(min(left, LONGEST_TIMER), self._watch, party)

    def _leave(self, party: Party) -> None:
        self._inside.discard(party)
        if party.timer is not None:
            party.timer.cancel()
            party.timer = None

    def _dismiss(self, party: Party, reason: str) -> None:
        self._leave(party)
        party.mind.dismiss(reason)

    def review(self) -> int:
        """Dismiss those whose credentials are good no more; answers how many."""
        gone = [party for party in self._inside if not party.identity.good()]
        for party in gone:
            self._dismiss(party, "the credentials were revoked")
        return len(gone)


def _name(avatar_id: object) -> str:
    return avatar_id.decode("utf-8") if isinstance(avatar_id, bytes) else str(avatar_id)


@implementer(ICredentialsChecker)
class Trusting:
    """Everybody is who they say."""

    credentialInterfaces = (IClaim,)

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        """Who the client says it is; fails with :exc:`LoginFailed` where it does not."""
        claim = credentials.claim()
        return fail(LoginFailed()) if claim is None else succeed(Identity(claim))


@implementer(ICredentialsChecker)
class AnyOf:
    """Several checkers: who is known to one of them is known."""

    def __init__(self, checkers: Sequence[Any]) -> None:
        self._checkers = checkers
        self.credentialInterfaces = tuple(
            {each for checker in checkers for each in checker.credentialInterfaces}
        )

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        """What the first that knows them finds; fails with :exc:`LoginFailed` where none does."""
        return Deferred.fromCoroutine(self._ask(credentials))

    async def _ask(self, credentials: Any) -> object:
        for checker in self._checkers:
            if any(each.providedBy(credentials) for each in checker.credentialInterfaces):
                try:
                    return await maybeDeferred(checker.requestAvatarId, credentials)
                except LoginFailed:
                    continue
        raise LoginFailed


class _Suspects:
    """Addresses that wrong credentials came from, and how long they have to wait."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def wait(self, address: str) -> float:
        """Seconds that the next try from there has to wait."""
        wrong, last = self._wrong.get(address, (0, 0.0))
        if not wrong or self._clock.seconds() - last > FORGIVEN:
            return 0.0
        pause: float = FIRST_WAIT * 2 ** min(wrong - 1, 16)
        return min(pause, LONGEST_WAIT)

    def was_wrong(self, address: str) -> None:
        """Wrong credentials came from there."""
        now = self._clock.seconds()
        wrong, last = self._wrong.pop(address, (0, now))
        self._wrong[address] = (1 if now - last > FORGIVEN else wrong + 1, now)
        while len(self._wrong) > MOST_ADDRESSES:
            self._wrong.popitem(last=False)


class _Lines:
    """Lines that tries stand in, each by its name; who is at the front of one may go on."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._locks: dict[str, DeferredLock] = {}

    def __len__(self) -> int:
        """How many lines there are."""
        return len(self._locks)

    def length(self, name: str) -> int:
        """How many wait in a line, besides who is at its front."""
        return len(self._locks[name].waiting) if name in self._locks else 0

    def front(self, name: str) -> _Front:
        """To be entered (``async with``) when one has come to the front of a line."""
        return _Front(self, name)

    def enter(self, name: str) -> Deferred[Any]:
        """Fires at the front of a line."""
        return self._locks.setdefault(name, DeferredLock()).acquire()

    def leave(self, name: str) -> None:
        """Whoever is at the front of a line leaves it."""
        if self._locks[name].waiting:
            # Not from within: of those who are done at once each would run in the one before.
            self._clock.callLater(0.0, self._next, name)
        else:
            self._next(name)

    def _next(self, name: str) -> None:
        lock = self._locks[name]
        lock.release()
        # The next one may be done, and have left, within that.
        if not lock.locked and self._locks.get(name) is lock:
            del self._locks[name]


class _Front:
    """The front of a line."""

    def __init__(self, lines: _Lines, name: str) -> None:
        self._lines = lines
        self._name = name

    async def __aenter__(self) -> None:
        await self._lines.enter(self._name)

    async def __aexit__(self, *_: object) -> None:
        self._lines.leave(self._name)


def _still_there(mind: Mind) -> None:
    """Nothing is looked up, nor is anybody made to wait, for who has hung up."""
    if mind.closed:
        raise Unauthenticated("the connection is gone")


Admission = tuple[Party, Callable[[], None]]


class Doorkeeper:
    """Lets parties in.

    :param checkers: who knows tokens; without any, everybody is who they say.
    :param clock: for timers.
    :param now: the time of day, in seconds since the epoch.
    :ivar wrong_login: is called at each wrong login.
    """

    _log = Logger()

    def __init__(
        self, checkers: Iterable[Any], clock: IReactorTime, now: Callable[[], float]
    ) -> None:
        self._checkers = list(checkers)
        self._clock = clock
        self._suspects = _Suspects(clock)
        self._lines = _Lines(clock)
        self.parties = Parties(clock, now)
        checker = AnyOf(self._checkers) if self._checkers else Trusting()
        self.wrong_login: Callable[[], None] = lambda: None
        self._portal = Portal(self.parties, [checker])

    async def admit(
        self, address: str | None, party: str | None, token: str | None, mind: Mind
    ) -> Admission:
        """Let a client in; answers with its avatar, and what to call when it leaves.

        Wrong credentials make the next try from the same address wait, right or wrong, unless its
        credentials were found good before.

        :param address: where it is, see :func:`transcribed.addresses.source`.
        :param party: who it says it is, if it does.

        Raises :exc:`Unauthenticated`.
        """
        credentials = self._credentials(party, token)
        place = address or "this machine"
        if not self._checkers or self._remembered(credentials):
            return await self._login(place, credentials, mind)
        if self._lines.length(place) >= MOST_WAITING:
            raise Unauthenticated("too many are coming in from your address")
        # One try at a time of each address, so that a crowd of them goes by what the first ones
        # showed; and one at a time of all, as a slow hash takes a core.
        async with self._lines.front(place):
            _still_there(mind)
            wait = self._suspects.wait(place)
            if wait and not self._remembered(credentials):
                await deferLater(self._clock, wait)
            async with self._lines.front(ALL):
                _still_there(mind)
                return await self._login(place, credentials, mind)

    async def _login(self, place: str, credentials: Claim | Bearer, mind: Mind) -> Admission:
        try:
            avatar: Any
            _, avatar, leave = await self._portal.login(credentials, mind, IParty)
        except (LoginFailed, UnhandledCredentials, UnicodeDecodeError):
            self._suspects.was_wrong(place)
            self.wrong_login()
            self._log.info("wrong credentials from {place}", place=place)
            raise Unauthenticated("the credentials are wrong") from None
        return avatar, leave

    def _credentials(self, party: str | None, token: str | None) -> Claim | Bearer:
        if not self._checkers:
            if party is None:
                raise Unauthenticated("hello must name the party")
            return Claim(party)
        if not token:
            raise Unauthenticated("a token is needed")
        return Bearer(token, None) if party is None else PartyAndToken(token, party)

    def _remembered(self, credentials: object) -> bool:
        return IBearerToken.providedBy(credentials) and any(
            IRemembers.providedBy(checker) and checker.remembers(credentials)
            for checker in self._checkers
        )

    def reload(self) -> None:
        """Read the checkers' files again, and dismiss whose credentials are good no more."""
        for checker in self._checkers:
            if IReloads.providedBy(checker):
                try:
                    checker.reload()
                except (OSError, ValueError) as e:
                    self._log.error("credentials are as before: {error}", error=e)
        dismissed = self.parties.review()
        self._log.info("credentials were read again, {count} dismissed", count=dismissed)
